//! Accepts connections, and admits one gateway at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kernel_provider::agent::frame::{FromAgent, ToAgent, hello_codec};
use kernel_provider::agent::{Hello, Refused, Stream, VERSION, Welcome};
use kernel_provider::lock;
use subtle::ConstantTimeEq as _;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{sleep, timeout};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::agent::Agent;
use crate::listener::{Handshake, Listener};
use crate::session;

/// How long a peer has for its first frame.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// The most connections that have not sent their first frame.
const MAX_UNAUTHENTICATED: usize = 16;
/// Pause after an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The gateway that uses the agent.
pub(crate) struct Client {
    /// See [`Hello::client`].
    id: Uuid,
    /// Identifies the gateway's connection.
    connection: Uuid,
    replaced: CancellationToken,
}

/// Accepts connections. Never returns.
pub(crate) async fn serve(agent: Arc<Agent>, listener: Listener) {
    let unauthenticated = Arc::new(tokio::sync::Semaphore::new(MAX_UNAUTHENTICATED));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = unauthenticated.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let greeted = timeout(HELLO_DEADLINE, greet(&agent, stream)).await;
            drop(permit);
            match greeted {
                Ok(Ok(Some((client, stream)))) => {
                    agent.connections.send_modify(|connections| *connections += 1);
                    let served = session::serve(&agent, stream, &client).await;
                    agent.connections.send_modify(|connections| *connections -= 1);
                    if let Err(error) = served {
                        debug!(%error, "an admitted connection ended");
                    }
                    leave(&agent, &client);
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => debug!(%error, "a connection sent no valid hello"),
                Err(_) => debug!("a connection sent no hello in time"),
            }
        });
    }
}

/// A connection that may use the agent.
pub(crate) struct Admitted {
    connection: Uuid,
    pub(crate) replaced: CancellationToken,
}

/// Reads the first frame and answers it. Returns the connection if it is admitted.
async fn greet(agent: &Agent, stream: Handshake) -> io::Result<Option<(Admitted, Box<dyn Stream>)>> {
    let mut stream = stream.complete().await?;
    let mut reader = FramedRead::new(&mut stream, hello_codec());
    let Some(frame) = reader.next().await else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let ToAgent::Hello(json) = ToAgent::decode(frame?.freeze()).map_err(invalid)? else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the first frame is not a hello",
        ));
    };
    let hello: Hello = serde_json::from_slice(&json)?;
    match admit(agent, &hello) {
        Ok(admitted) => Ok(Some((admitted, stream))),
        Err(refused) => {
            let json = serde_json::to_vec(&refused)?;
            stream.write_all(&FromAgent::Refused(json.into()).encode()).await?;
            stream.flush().await?;
            Ok(None)
        }
    }
}

fn admit(agent: &Agent, hello: &Hello) -> Result<Admitted, Refused> {
    if !bool::from(hello.token.as_bytes().ct_eq(agent.launch.token.as_bytes())) {
        return Err(Refused::Token);
    }
    if hello.version != VERSION {
        return Err(Refused::Version { speaks: VERSION });
    }
    let mut client = lock(&agent.client);
    if let Some(before) = &*client {
        if before.id != hello.client {
            return Err(Refused::Busy);
        }
        before.replaced.cancel();
    }
    let (connection, replaced) = (Uuid::new_v4(), CancellationToken::new());
    *client = Some(Client {
        id: hello.client,
        connection,
        replaced: replaced.clone(),
    });
    Ok(Admitted { connection, replaced })
}

fn leave(agent: &Agent, admitted: &Admitted) {
    let mut client = lock(&agent.client);
    if client
        .as_ref()
        .is_some_and(|client| client.connection == admitted.connection)
    {
        *client = None;
    }
}

/// The first frame to an admitted connection.
pub(crate) fn welcome(agent: &Agent) -> io::Result<FromAgent> {
    let welcome = Welcome {
        version: VERSION,
        kernel_id: agent.launch.id,
        spool: agent.log.epoch().to_string().parse().map_err(io::Error::other)?,
        phase: agent.phase.borrow().clone(),
        head: agent.log.head().0,
        is_delivered: *agent.acknowledged.borrow() >= agent.log.head(),
        accepted: agent.accepted.borrow().clone(),
    };
    Ok(FromAgent::Welcome(serde_json::to_vec(&welcome)?.into()))
}
