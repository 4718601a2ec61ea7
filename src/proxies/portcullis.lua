-- Written by `portcullis proxy-config haproxy`. Write it again when identity headers or hosts of external routes change.
local passed = {
{%- for name in site.passed() %}
  "{{ name.lower() }}",
{%- endfor %}
}
local identity = {
{%- for name in site.names %}
  "{{ name.lower() }}",
{%- endfor %}
}
local kept = {
  "location", "www-authenticate", "retry-after", "cache-control", "content-type", "allow",
  "content-language", "content-security-policy", "x-content-type-options", "referrer-policy", "vary",
}

core.register_action("portcullis", { "http-req" }, function(txn)
  local received, ask = txn.http:req_get_headers(), {}
  for _, name in ipairs(passed) do
    local values = received[name]
    if values then
      ask[name] = {}
      local at = 0
      while values[at] do
        ask[name][at] = values[at]
        at = at + 1
      end
    end
  end
  ask["x-portcullis-method"] = { [0] = txn.f:method() }
  ask["x-portcullis-uri"] = { [0] = txn.f:pathq() }
  ask["x-portcullis-host"] = { [0] = txn.f:req_fhdr("host") }
  ask["x-portcullis-client"] = { [0] = txn.f:src() }
  ask["x-portcullis-proto"] = { [0] = txn.f:ssl_fc() == 1 and "https" or "http" }

  -- HAProxy repeats a question that gets no answer three times.
  local answer = core.httpclient():get({ url = "http://{{ site.verify }}/haproxy", headers = ask, timeout = 3000 })

  -- Only a 200 lets the request through; without an answer, the status is a 5xx.
  if answer and answer.status == 200 then
    for _, name in ipairs(identity) do
      txn.http:req_del_header(name)
      local values = answer.headers[name]
      if values and values[0] and values[0] ~= "" then
        txn.http:req_set_header(name, values[0])
      end
    end
    -- Without the cookies of the gateway.
    txn.http:req_del_header("cookie")
    local cookies = answer.headers["cookie"]
    if cookies and cookies[0] and cookies[0] ~= "" then
      txn.http:req_set_header("cookie", cookies[0])
    end
    return
  end

  local status = answer and answer.status or 503
  if status < 300 then
    status = 503
  end
  local reply = txn:reply({ status = status })
  for _, name in ipairs(kept) do
    local values, at = answer and answer.headers and answer.headers[name], 0
    while values and values[at] do
      reply:add_header(name, values[at])
      at = at + 1
    end
  end
  reply:set_body(answer and answer.body or "")
  txn:done(reply)
end, 0)
