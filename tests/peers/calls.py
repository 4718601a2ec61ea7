"""gRPC calls with grpcio, the implementation of its authors: a server and a client of all four kinds of calls.

{"serve": true} → {"port"}: a server whose methods are below. {"stop": true} → {}: it closes in order: calls in flight are completed.
{"call": KIND, "address", "metadata": {…}, "messages": […], "timeout"} → {"code", "details", "messages", "trailers"}.

The messages are text. Each method adds what the server knows: "message|x-auth-user".
"""

import concurrent.futures
import json
import sys
import time

import grpc

SERVICE = "shop.Inventory"
KINDS = {
    "Unary": grpc.unary_unary_rpc_method_handler,
    "Down": grpc.unary_stream_rpc_method_handler,
    "Up": grpc.stream_unary_rpc_method_handler,
    "Both": grpc.stream_stream_rpc_method_handler,
}


def reply(text, context):
    metadata = dict(context.invocation_metadata())
    return f"{text}|{metadata.get('x-auth-user', 'nobody')}"


def unary(request, context):
    if request == "fail":
        context.set_trailing_metadata((("x-why", "asked to"),))
        context.abort(grpc.StatusCode.DATA_LOSS, "it failed")
    if request == "large":
        context.send_initial_metadata((("x-large", "y" * 40_000),))
    if request.startswith("sleep "):
        time.sleep(float(request.split()[1]))
    context.set_trailing_metadata((("x-end", "of unary"),))
    return reply(request, context)


def down(request, context):
    for number in range(int(request)):
        yield reply(str(number), context)
    context.set_trailing_metadata((("x-end", "of down"),))


def up(requests, context):
    return reply(" ".join(requests), context)


def both(requests, context):
    # Each message is answered before the next one is sent.
    for request in requests:
        yield reply(request, context)


METHODS = {"Unary": unary, "Down": down, "Up": up, "Both": both}
server = None


def serve():
    global server
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=[("grpc.max_metadata_size", 64 * 1024)])
    text = {"request_deserializer": bytes.decode, "response_serializer": str.encode}
    handlers = {name: KINDS[name](method, **text) for name, method in METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return {"port": port}


def in_turn(messages, answered):
    """Sends a message only after the one before was answered."""
    for number, message in enumerate(messages):
        while len(answered) < number:
            time.sleep(0.005)
        yield message


def call(question):
    kind, messages = question["call"], question["messages"]
    metadata = tuple(question.get("metadata", {}).items())
    options = {"metadata": metadata, "timeout": question.get("timeout", 20)}
    text = {"request_serializer": str.encode, "response_deserializer": bytes.decode}
    path, answered, trailers = f"/{question.get('service', SERVICE)}/{kind}", [], {}
    limits = [("grpc.max_metadata_size", 64 * 1024), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(question["address"], options=limits) as channel:
        try:
            if kind == "Unary":
                answer, ended = channel.unary_unary(path, **text).with_call(messages[0], **options)
                answered.append(answer)
            elif kind == "Up":
                answer, ended = channel.stream_unary(path, **text).with_call(iter(messages), **options)
                answered.append(answer)
            elif kind == "Down":
                ended = channel.unary_stream(path, **text)(messages[0], **options)
                answered.extend(ended)
            else:
                ended = channel.stream_stream(path, **text)(in_turn(messages, answered), **options)
                for answer in ended:
                    answered.append(answer)
            code, details, trailers = ended.code(), ended.details(), ended.trailing_metadata()
            initial = ended.initial_metadata()
        except grpc.RpcError as error:
            code, details, trailers = error.code(), error.details(), error.trailing_metadata()
            initial = error.initial_metadata()
    return {
        "code": code.value[0], "details": details, "messages": answered,
        "trailers": dict(trailers or ()), "initial": {key: len(value) for key, value in (initial or ())},
    }


for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("serve"):
        answer = serve()
    elif asked.get("stop"):
        server.stop(10).wait()
        answer = {}
    else:
        answer = call(asked)
    print(json.dumps(answer), flush=True)
