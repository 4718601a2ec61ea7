//! `bare LISTEN UPSTREAM`: the baseline. hyper's server in front of hyper-util's pooled client on
//! one thread, with nothing between them: no routes, no log, no timeouts, no header rules.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

fn main() -> io::Result<()> {
    let arguments = bench_proxy::Arguments::read()?;
    let listen = arguments.address(0)?;
    let upstream = arguments.address(1)?.to_string();
    bench_proxy::on_one_thread(async move {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).set_host(false).build(connector);
        bench_proxy::serve(listen, move |stream| {
            let (client, upstream) = (client.clone(), upstream.clone());
            async move {
                let service = service_fn(move |request| pass(client.clone(), upstream.clone(), request));
                // The load generator reports connections that end with an error.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await
    })
}

async fn pass(client: Client<HttpConnector, Incoming>, upstream: String, mut request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let target = request.uri().path_and_query().cloned();
    let uri = target.and_then(|target| Uri::builder().scheme("http").authority(upstream).path_and_query(target).build().ok());
    let Some(uri) = uri else { return Ok(empty(StatusCode::BAD_REQUEST)) };
    *request.uri_mut() = uri;
    match client.request(request).await {
        Ok(response) => Ok(response.map(BodyExt::boxed)),
        Err(_) => Ok(empty(StatusCode::BAD_GATEWAY)),
    }
}

fn empty(status: StatusCode) -> Answer {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
