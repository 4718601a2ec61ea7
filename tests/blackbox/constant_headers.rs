//! `set_headers` and `response_headers` of a route.

use serde_json::json;

use crate::harness::upstream::write;
use crate::harness::{Gateway, mint};

#[tokio::test]
async fn constant_headers_reach_the_application_and_a_clients_do_not() {
    let config = "[[route]]\npath = '/a/*'\nupstream = 'app'\naccess = 'public'\n\
         set_headers = { X-Script-Name = '/pgadmin', X-Key = { file = 'key' }, X-Env = { env = 'UPSTREAM_KEY' }, Accept-Encoding = 'identity' }\n\
         [[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'";
    let gateway = Gateway::setup(config)
        .file("key", "hunter2\n")
        .variable("UPSTREAM_KEY", "from-the-environment")
        .start()
        .await;
    let send = async |path: &str| {
        let request = gateway.request("POST", path).header("X_Script.Name", "/evil");
        let request = request.header("X-Script-Name", "/evil").header("x-key", "stolen");
        let request =
            request.header("Accept-Encoding", "gzip").header("Trailer", "X-Key, X_Env, X-Sum");
        let request = request.header("Transfer-Encoding", "chunked");
        let mut bytes = request.bytes();
        bytes.extend_from_slice(b"0\r\nX-Key: t\r\nX_Env: t\r\nX-Sum: t\r\n\r\n");
        assert_eq!(gateway.raw(bytes).await.status, 200);
        gateway.upstream().last()
    };
    let received = send("/a/x").await;
    assert_eq!(received.header("x-script-name"), Some("/pgadmin"));
    assert_eq!(received.header("x-key"), Some("hunter2"));
    assert_eq!(received.header("x-env"), Some("from-the-environment"));
    assert_eq!(received.header("accept-encoding"), Some("identity"));
    assert_eq!(
        (received.header("x_script.name"), received.header("trailer")),
        (None, Some("x-sum"))
    );
    // Elsewhere the names mean nothing.
    let received = send("/b").await;
    assert_eq!(received.header("x-key"), Some("stolen"));
    assert_eq!(received.header("x_script.name"), Some("/evil"));

    // `explain` never shows a secret.
    for arguments in [&["explain", "GET", "/a/x"][..], &["explain", "GET", "/a/x", "--json"]] {
        let (code, told, _) = gateway.command(arguments).await;
        assert_eq!(code, 0, "{told}");
        assert!(!told.contains("hunter2") && !told.contains("from-the-env"), "{told}");
        assert!(told.contains("[secret]") && told.contains("/pgadmin"), "{told}");
    }
    // A reload reads the file again.
    std::fs::write(gateway.path("key"), "changed").unwrap();
    assert_eq!(gateway.reload(config).await["message"], "reloaded");
    assert_eq!(send("/a/x").await.header("x-key"), Some("changed"));
    assert!(gateway.log().lines().iter().all(|line| !line.to_string().contains("changed")));
}

#[tokio::test]
async fn the_echo_application_and_tests_mask_secrets() {
    let config = "[upstream.app]\nbuiltin = 'echo'\n\
         [[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\nset_headers = { X-Key = { file = 'key' } }\n\
         [[test]]\nrequest = 'GET /'\nexpect = { status = 200, headers = { X-Key = '[secret]' } }";
    let gateway = Gateway::setup(config).file("key", "hunter2").start().await;
    assert_eq!(gateway.get("/").send().await.json()["headers"]["x-key"], "[secret]");
}

#[tokio::test]
async fn constant_headers_cannot_be_names_of_the_gateway() {
    let gateway =
        Gateway::start("[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'").await;
    let refused = async |line: &str| {
        let config = format!(
            "[[route]]\npath = '/*'\nupstream = 'app'\naccess = 'public'\n{line}\n\
             [[route]]\npath = '/b'\nupstream = 'app'\nidentity_headers = {{ X-Remote-User = 'sub' }}"
        );
        gateway.write(&config);
        let (code, _, told) = gateway.command(&["check"]).await;
        if code != 0 {
            assert_eq!(code, 78, "{told}");
        }
        told.lines().next().and_then(|line| line.strip_prefix("error: ")).map(str::to_owned)
    };
    for (name, why) in [
        ("X-Auth-User", "is an identity header"),
        ("x_auth.roles", "is an identity header"),
        ("X-Remote-User", "is an identity header"),
        ("x_remote_user", "is an identity header"),
        ("X-Forwarded-For", "removes from every request"),
        ("X-Forwarded-Prefix", "removes from every request"),
        ("x_real_ip", "removes from every request"),
        ("Forwarded", "removes from every request"),
        ("Connection", "removes from every request"),
        ("Transfer-Encoding", "removes from every request"),
        ("X-Request-Id", "removes from every request"),
        ("Destination", "removes from every request"),
        ("If", "removes from every request"),
        ("X-HTTP-Method-Override", "would change the method"),
        ("Authorization", "carries the credentials of callers"),
        ("Host", "is set for the whole upstream"),
        ("Content-Length", "has its own meaning in HTTP"),
        ("Content_Type", "removes from every request"),
        ("Cookie", "has its own meaning in HTTP"),
        ("a b", "not a valid header name"),
    ] {
        let told = refused(&format!("set_headers = {{ '{name}' = 'x' }}")).await;
        assert!(told.as_deref().is_some_and(|told| told.contains(why)), "{name}: {told:?}");
    }
    for (name, why) in [
        ("Set-Cookie", "depends on the response"),
        ("WWW-Authenticate", "depends on the response"),
        ("Content-Length", "depends on the response"),
        ("Connection", "depends on the response"),
        ("transfer_encoding", "depends on the response"),
        ("Location", "depends on the response"),
        ("a b", "not a valid header name"),
    ] {
        let told = refused(&format!("response_headers = {{ '{name}' = 'x' }}")).await;
        assert!(told.as_deref().is_some_and(|told| told.contains(why)), "{name}: {told:?}");
    }
    for (line, why) in [
        ("set_headers = { X-A = '' }", "the value is empty"),
        ("set_headers = { X-A = 'a\\nb' }".replace('\'', "\"").as_str(), "contains a line break"),
        ("set_headers = { X-A = 'é' }", "outside ASCII"),
        ("set_headers = { X-A = ' a' }", "begins or ends with a space"),
        ("set_headers = { X-A = 'a', X_A = 'b' }", "may mistake"),
        ("set_headers = { X-A = { file = 'nowhere' } }", "there is no file"),
        ("response_headers = { X-A = '' }", "the value is empty"),
    ] {
        let told = refused(line).await;
        assert!(told.as_deref().is_some_and(|told| told.contains(why)), "{line}: {told:?}");
    }
    for line in [
        "set_headers = { User-Agent = 'x', X-Script-Name = '/y' }",
        "response_headers = { Cache-Control = 'no-cache' }",
    ] {
        assert_eq!(refused(line).await, None, "{line}");
    }
}

#[tokio::test]
async fn every_response_of_a_route_has_its_constant_headers() {
    let gateway = Gateway::start(
        "[server.limits]\nmax_body = '4B'\n[limit.few]\nrequests = 2\nper = '1h'\n\
         [[route]]\npath = '/*'\nupstream = 'app'\nresponse_headers = { Strict-Transport-Security = 'max-age=31536000', Server = 'x', Cache-Control = 'max-age=5' }\n\
         [[route]]\npath = '/few/*'\nupstream = 'app'\nlimit = 'few'\naccess = 'public'\nresponse_headers = { X-Few = '1' }\n\
         [[route]]\npath = '/moved/*'\nredirect = { to = '/few' }\naccess = 'public'\nresponse_headers = { X-Moved = '1', Cache-Control = 'max-age=5' }\n\
         [[route]]\npath = '/plain'\nupstream = 'app'\naccess = 'public'",
    )
    .await;
    gateway.upstream().does_at(
        "/own",
        vec![write("HTTP/1.1 404 Not Found\r\nServer: app\r\nServer: again\r\nStrict-Transport-Security: max-age=0\r\nContent-Length: 0\r\n\r\n")],
    );
    let token = mint::token(&[]);
    let is_set = |response: &crate::harness::Response| {
        assert_eq!(
            response.header("strict-transport-security"),
            Some("max-age=31536000"),
            "{response:?}"
        );
        assert_eq!(response.header("server"), Some("x"), "{response:?}");
    };
    let response = gateway.get("/own").bearer(&token).send().await;
    assert_eq!(response.status, 404);
    is_set(&response);
    assert_eq!(response.header("cache-control"), Some("max-age=5"));
    for (response, status) in [
        (gateway.get("/x").send().await, 401),
        (gateway.get("/x").bearer("a.b.c").send().await, 401),
        (gateway.request("POST", "/x").bearer(&token).body("12345").send().await, 413),
        (gateway.request("HEAD", "/x").send().await, 401),
    ] {
        assert_eq!(response.status, status);
        is_set(&response);
        // What the gateway says of its own response stands.
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
    assert_eq!(gateway.get("/few").send().await.header("x-few"), Some("1"));
    assert_eq!(gateway.get("/few").send().await.status, 200);
    let response = gateway.get("/few").send().await;
    assert_eq!((response.status, response.header("x-few")), (429, Some("1")));
    let response = gateway.get("/moved").send().await;
    assert_eq!((response.status, response.header("x-moved")), (308, Some("1")));
    assert_eq!(response.header("cache-control"), Some("max-age=5"));
    assert_eq!(gateway.get("/plain").send().await.header("server"), None);
    let (_, told, _) = gateway.command(&["explain", "GET", "/few"]).await;
    assert!(told.contains("every response of this route has `x-few`"), "{told}");
    assert_eq!(gateway.access("/own").await["http.response.status_code"], json!(404));
}
