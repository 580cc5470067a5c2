//! A proxy in front of the API server that can simulate an outage for one client.

use std::sync::Mutex;

use kube::{Client, Config};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards connections until they are cut.
pub(crate) struct Proxy {
    cut: watch::Sender<u64>,
    is_down: watch::Sender<bool>,
    _serving: Mutex<JoinSet<()>>,
}

impl Proxy {
    /// Creates a proxy in front of this configuration's server, and a client that uses it.
    pub(crate) async fn in_front_of(mut config: Config) -> (Self, Client) {
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

    /// Closes all open connections.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Starts or ends an outage. Closes all open connections; during an outage, new ones are closed too.
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
