//! Logs in NATS JetStream, which several gateways can share: for each log, a stream of blocks and a stream of index
//! records.
//!
//! A block is one message, or several if it exceeds the server's message limit. The last message completes the block
//! and contains the index updates that came with it. The writer applies the updates to the index stream afterwards. If
//! it is interrupted, the next process that opens the log applies them again. So a block and its updates are visible
//! together or not at all.
//!
//! Each message is published with the expected sequence number of its predecessor, so the server refuses it if another
//! gateway writes the log.

mod index;
mod log;
mod part;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, Info, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectOptions};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use jupyter_protocol::KernelId;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use self::log::NatsLog;
use super::{LogInfo, LogStore, StoreError, StoredLog};
use crate::{Epoch, Seq};

/// Timeout of a request to the server.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How to connect to NATS. The URL may contain a password, so `Debug` output omits it.
#[derive(Clone)]
#[non_exhaustive]
pub struct NatsOptions {
    /// The servers, such as `nats://localhost:4222`, separated by commas.
    pub url: String,
    /// A credentials file, as written by `nsc`; `None` if none are required or the URL has them.
    pub credentials: Option<PathBuf>,
    /// Prefix of stream names and subjects: letters, digits, `_` and `-`. Gateways with the same prefix share logs.
    pub prefix: String,
    /// Replicas of each log in a cluster, up to 5.
    pub replicas: usize,
}

impl NatsOptions {
    /// Options for these servers, without credentials, with the prefix `kernelmux` and one replica.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            prefix: "kernelmux".to_owned(),
            replicas: 1,
        }
    }

    /// Sets the credentials file.
    #[must_use]
    pub fn with_credentials(mut self, credentials: impl Into<PathBuf>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }

    /// Sets the prefix of stream names and subjects.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the replicas of each log.
    #[must_use]
    pub fn with_replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

/// Keeps logs in NATS JetStream; needs server 2.9 or later.
///
/// One gateway at a time writes a kernel's log. If a second one writes to it, appends of the first fail. While the
/// server is unreachable, appends fail at once and readers continue from memory.
pub struct NatsStore {
    nats: Arc<Nats>,
}

impl fmt::Debug for NatsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsStore")
            .field("options", &self.nats.options)
            .finish_non_exhaustive()
    }
}

/// The connection and its own runtime, because stores are called from any runtime or none.
struct Nats {
    client: Client,
    context: Context,
    options: NatsOptions,
    runtime: Option<Runtime>,
    closed: AtomicBool,
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for the runtime's threads panics in async code, and is not necessary.
            runtime.shutdown_background();
        }
    }
}

/// Metadata of a log, stored as the description of its stream.
#[derive(Serialize, Deserialize)]
struct Meta {
    epoch: Epoch,
    created: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

/// An `action` that failed with `error`.
fn failed(action: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::failed(format!("{action} in NATS"), error)
}

impl NatsStore {
    /// Connects to the servers. Blocks the thread.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the prefix is invalid, or if no server is reachable, accepts the credentials and has
    /// JetStream.
    pub fn connect(options: NatsOptions) -> Result<Self, StoreError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if options.prefix.is_empty() || !options.prefix.bytes().all(valid) || options.prefix.len() > 64 {
            return Err(failed(
                "keep logs",
                "the prefix must consist of 1 to 64 letters, digits, `_` and `-`",
            ));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kernelmux-nats")
            .enable_all()
            .build()
            .map_err(|error| failed("keep logs", error))?;
        // On a separate thread, because the caller may be in another runtime.
        let connecting = || runtime.block_on(connect(&options));
        let connected = std::thread::scope(|threads| threads.spawn(connecting).join());
        let (client, context) = connected.map_err(|_| failed("connect to the logs", "a thread panicked"))??;
        Ok(Self {
            nats: Arc::new(Nats {
                client,
                context,
                options,
                runtime: Some(runtime),
                closed: AtomicBool::new(false),
            }),
        })
    }
}

async fn connect(options: &NatsOptions) -> Result<(Client, Context), StoreError> {
    let mut connect = ConnectOptions::new().name("kernelmux").connection_timeout(TIMEOUT);
    if let Some(file) = &options.credentials {
        connect = connect
            .credentials_file(file)
            .await
            .map_err(|error| failed("read the credentials for the logs", error))?;
    }
    let servers: Vec<_> = options.url.split(',').map(str::trim).collect();
    let client = connect
        .connect(&servers[..])
        .await
        .map_err(|error| failed("connect to the logs", error))?;
    let mut context = async_nats::jetstream::new(client.clone());
    context.set_timeout(TIMEOUT);
    // Checks that JetStream is available: it answers that this stream does not exist.
    match context.get_stream(format!("{}-none", options.prefix)).await {
        Ok(_) => {}
        Err(error) if is_not_found(&error.kind()) => {}
        Err(error) => return Err(failed("find JetStream", error)),
    }
    Ok((client, context))
}

fn is_not_found(error: &GetStreamErrorKind) -> bool {
    matches!(error, GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

impl Nats {
    /// Runs a request and blocks this thread until it ends.
    fn block_on<T>(&self, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let Some(runtime) = self.runtime.as_ref().filter(|_| !self.closed.load(Ordering::Acquire)) else {
            return Err(StoreError::Closed {
                place: "NATS".to_owned(),
            });
        };
        // Without a connection, each request would wait for its timeout.
        if self.client.connection_state() != State::Connected {
            return Err(failed("keep logs", "the server is not connected"));
        }
        runtime.block_on(request)
    }

    fn log_name(&self, id: KernelId) -> String {
        format!("{}-log-{id}", self.options.prefix)
    }

    fn index_name(&self, id: KernelId) -> String {
        format!("{}-index-{id}", self.options.prefix)
    }

    fn log_subject(&self, id: KernelId) -> String {
        format!("{}.{id}.log", self.options.prefix)
    }

    fn index_subject(&self, id: KernelId) -> String {
        format!("{}.{id}.index", self.options.prefix)
    }

    fn id_of(&self, stream: &str) -> Option<KernelId> {
        stream
            .strip_prefix(&self.options.prefix)?
            .strip_prefix("-log-")?
            .parse()
            .ok()
    }

    async fn existing(&self, name: &str) -> Result<Option<Stream<Info>>, StoreError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_not_found(&error.kind()) => Ok(None),
            Err(error) => Err(failed("find a log", error)),
        }
    }

    async fn existing_or_new(&self, config: Config) -> Result<Stream<Info>, StoreError> {
        if let Some(stream) = self.existing(&config.name).await? {
            return Ok(stream);
        }
        let name = config.name.clone();
        match self.context.create_stream(config).await {
            Ok(stream) => Ok(stream),
            // Another process may have created it first.
            Err(error) => match (error.kind(), self.existing(&name).await?) {
                (CreateStreamErrorKind::JetStream(_), Some(stream)) => Ok(stream),
                _ => Err(failed("create a log", error)),
            },
        }
    }

    fn config(&self, name: String, subject: String) -> Config {
        Config {
            name,
            subjects: vec![subject],
            storage: StorageType::File,
            num_replicas: self.options.replicas,
            allow_direct: true,
            ..Config::default()
        }
    }

    async fn open(self: &Arc<Self>, id: KernelId, owner: Option<&str>) -> Result<NatsLog, StoreError> {
        let meta = Meta {
            epoch: Epoch::random(),
            created: Utc::now(),
            owner: owner.map(str::to_owned),
        };
        let description = serde_json::to_string(&meta).map_err(|error| failed("create a log", error))?;
        let index = Config {
            max_messages_per_subject: 1,
            ..self.config(self.index_name(id), format!("{}.>", self.index_subject(id)))
        };
        let log = Config {
            description: Some(description),
            ..self.config(self.log_name(id), self.log_subject(id))
        };
        // The log's stream is created last, so that every listed log has an index.
        let index = self.existing_or_new(index).await?;
        let mut log = self.existing_or_new(log).await?;
        let meta = meta_of(id, log.cached_info())?;
        if meta.owner.is_none() && owner.is_some() {
            log = self.set_owner(log, meta, owner).await?;
        }
        NatsLog::open(self.clone(), id, log, index).await
    }

    async fn set_owner(&self, log: Stream<Info>, meta: Meta, owner: Option<&str>) -> Result<Stream<Info>, StoreError> {
        let failed = |error: &dyn fmt::Display| failed("write the owner of a log", error);
        let meta = Meta {
            owner: owner.map(str::to_owned),
            ..meta
        };
        let config = Config {
            description: Some(serde_json::to_string(&meta).map_err(|error| failed(&error))?),
            ..log.cached_info().config.clone()
        };
        let name = config.name.clone();
        self.context
            .update_stream(config)
            .await
            .map_err(|error| failed(&error))?;
        self.context.get_stream(name).await.map_err(|error| failed(&error))
    }

    async fn get(self: &Arc<Self>, id: KernelId) -> Result<Option<NatsLog>, StoreError> {
        let Some(log) = self.existing(&self.log_name(id)).await? else {
            return Ok(None);
        };
        let index = self
            .existing(&self.index_name(id))
            .await?
            .ok_or_else(|| StoreError::damaged(id, "the stream of its index is gone"))?;
        NatsLog::open(self.clone(), id, log, index).await.map(Some)
    }

    async fn list(self: &Arc<Self>) -> Result<Vec<LogInfo>, StoreError> {
        let streams: Vec<Info> = self
            .context
            .streams()
            .try_collect()
            .await
            .map_err(|error| failed("list the logs", error))?;
        let mut logs = Vec::new();
        for info in streams {
            let Some(id) = self.id_of(&info.config.name) else {
                continue;
            };
            match self.described(id, &info).await {
                Ok(info) => logs.extend(info),
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(kernel_id = %id, %error, "skipping a log in the list");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(logs)
    }

    async fn info(self: &Arc<Self>, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        match self.existing(&self.log_name(id)).await? {
            Some(stream) => self.described(id, stream.cached_info()).await,
            None => Ok(None),
        }
    }

    /// The log of this stream; `None` if it was removed.
    async fn described(self: &Arc<Self>, id: KernelId, info: &Info) -> Result<Option<LogInfo>, StoreError> {
        let meta = meta_of(id, info)?;
        let Some(log) = self.get(id).await? else {
            return Ok(None);
        };
        let (first, last, updated) = log.described().await?;
        Ok(Some(LogInfo {
            owner: meta.owner,
            created: meta.created,
            updated: updated.unwrap_or(meta.created),
            first,
            last,
            bytes: log.bytes(),
            ..LogInfo::new(id, meta.epoch)
        }))
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        match self.context.delete_stream(&name).await {
            Ok(_) => Ok(()),
            // If it did not exist, nothing is left to do.
            Err(error) => match self.existing(&name).await? {
                None => Ok(()),
                Some(_) => Err(failed("remove a log", error)),
            },
        }
    }
}

fn meta_of(id: KernelId, info: &Info) -> Result<Meta, StoreError> {
    let description = info.config.description.as_deref().unwrap_or_default();
    serde_json::from_str(description).map_err(|error| StoreError::damaged(id, error))
}

impl LogStore for NatsStore {
    fn is_shared(&self) -> bool {
        true
    }

    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(self.nats.block_on(self.nats.open(id, None))?))
    }

    fn open_for(&self, id: KernelId, owner: &str) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(self.nats.block_on(self.nats.open(id, Some(owner)))?))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = self.nats.block_on(self.nats.get(id))?;
        Ok(log.map(|log| Box::new(log) as Box<dyn StoredLog>))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        self.nats.block_on(self.nats.list())
    }

    fn info(&self, id: KernelId) -> Result<Option<LogInfo>, StoreError> {
        self.nats.block_on(self.nats.info(id))
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.nats.block_on(async {
            self.nats.delete(self.nats.log_name(id)).await?;
            self.nats.delete(self.nats.index_name(id)).await
        })
    }

    /// Does nothing, because acknowledged messages are on the servers. The servers' `sync_interval` and the number of
    /// replicas determine which failures the messages survive.
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.nats.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let Some(runtime) = &self.nats.runtime else {
            return Ok(());
        };
        let drained = runtime.block_on(async { tokio::time::timeout(TIMEOUT, self.nats.client.drain()).await });
        match drained {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed("close the connection", error)),
            Err(_) => Err(failed("close the connection", "the server did not answer in time")),
        }
    }
}

/// The bounds of an empty log.
const EMPTY: (Seq, Seq) = (Seq(1), Seq::START);
