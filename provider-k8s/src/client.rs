//! A Kubernetes client that detects dead connections.

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

/// TCP keepalive: idle time before the first probe, interval between probes, and number of unanswered probes before the
/// connection is closed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent data may stay unacknowledged before the connection is closed.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a response may take to begin.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates a client for [`K8sProvider::open_with`](crate::K8sProvider::open_with) from a kube configuration.
///
/// Unlike kube's own client, it detects dead connections, for example after a control plane node was lost or this
/// machine was suspended. Otherwise, watches and port-forwards would stay silent for about 15 minutes, until TCP times
/// out. This client closes a connection that is unresponsive for 30 s, and fails a request whose response does not
/// begin within 30 s.
///
/// If the configuration has a proxy, this returns kube's own client.
///
/// # Errors
/// [`kube::Error`] if the configuration's credentials cannot be used.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    // This client's connector does not support proxies.
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
    async fn a_response_that_does_not_begin_times_out() {
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
        let result = Api::<Pod>::namespaced(client, "default")
            .watch(&Default::default(), "0")
            .await;
        assert!(result.is_err());
        assert!(
            (RESPONSE_TIMEOUT..RESPONSE_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        silent.abort();
    }
}
