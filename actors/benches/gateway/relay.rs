//! The least that a gateway in Rust can do: passes requests on with another key, and replies as they come.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::upstream;

/// Relays for ever.
pub async fn serve(listener: TcpListener, upstream: SocketAddr) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let client = client.clone();
        let relay = service_fn(move |mut request: Request<Incoming>| {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = format!("http://{upstream}{path}").parse::<Uri>().expect("a path stays one");
            let headers = request.headers_mut();
            headers.remove(HOST);
            headers.insert("x-api-key", HeaderValue::from_static(upstream::KEY));
            client.request(request)
        });
        tokio::spawn(async move {
            // A caller that goes away is none of its business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), relay).await;
        });
    }
}
