//! The client of the API server: kube's own, but one that notices when nobody answers any more.

use std::time::Duration;

use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may be silent until the other side is asked whether it is there, how long is waited for an
/// answer, and how many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay without an acknowledgement.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may take to begin.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client for the cluster of a configuration, for [`K8sProvider::open_with`](crate::K8sProvider::open_with).
///
/// It is as kube makes one, but for a connection that is dead and does not say so, as after a node of the control plane
/// is lost, or where this machine was asleep: a watch on it would be silent, and so would a port-forward, until TCP gives
/// up after a quarter of an hour. This one gives up a connection that does not answer within 30 s, and a request whose
/// answer has not begun within 30 s.
///
/// # Errors
/// Where the configuration's credentials cannot be used.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    // kube tells what is wrong with that: this client has no way through a proxy.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let retries = config
        .default_retry
        .then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retries)
        .layer(TimeoutLayer::new(RESPONSE_TIMEOUT))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Http::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_begin_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let silent = tokio::spawn(async move {
            let mut accepted = Vec::new();
            loop {
                accepted.push(listener.accept().await.unwrap());
            }
        });
        let client = client(Config::new(address.parse().unwrap())).unwrap();
        let began = Instant::now();
        let asked = Api::<Pod>::namespaced(client, "default")
            .watch(&Default::default(), "0")
            .await;
        assert!(asked.is_err());
        assert!(
            (RESPONSE_TIMEOUT..RESPONSE_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        silent.abort();
    }
}
