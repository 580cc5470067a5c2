//! A proxy in front of the API server, whose connections can be cut: an API server that is down, for one client only.

use std::sync::Mutex;

use kube::{Client, Config};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Carries each connection until it is cut.
pub(crate) struct Proxy {
    cut: watch::Sender<u64>,
    is_down: watch::Sender<bool>,
    _serving: Mutex<JoinSet<()>>,
}

impl Proxy {
    /// In front of this configuration's server, with a client that goes through it.
    pub(crate) async fn before(mut config: Config) -> (Self, Client) {
        let host = config.cluster_url.host().unwrap().to_owned();
        let target = (host.clone(), config.cluster_url.port_u16().unwrap_or(443));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_down) = (watch::Sender::new(0), watch::Sender::new(false));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, target, cut.clone(), is_down.clone()));
        config.cluster_url = format!("https://{address}").parse().unwrap();
        config.tls_server_name = Some(host);
        let proxy = Self {
            cut,
            is_down,
            _serving: Mutex::new(serving),
        };
        (proxy, Client::try_from(config).unwrap())
    }

    /// Breaks the connections that there are.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Breaks them, and each new one until it is up again.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.send_replace(is_down);
        self.cut();
    }
}

async fn serve(listener: TcpListener, target: (String, u16), cut: watch::Sender<u64>, is_down: watch::Sender<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        if *is_down.borrow() {
            continue;
        }
        let (target, mut cut) = (target.clone(), cut.subscribe());
        connections.spawn(async move {
            let Ok(mut server) = TcpStream::connect(target).await else {
                return;
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = cut.changed() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
