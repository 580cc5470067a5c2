//! The database, opened again where it gave up.
//!
//! fjall takes no writes any more once one has failed, until it is opened anew; and where a disk is full as it writes
//! its tables, it waits forever for them. So no write is tried where there is no room for all that is to be written
//! because of it, and where one failed, the database is opened anew before the next.
//!
//! When a table in memory is to be written is decided here. fjall's own way is to ask its worker for it with each write
//! beyond the limit, through a queue that the worker puts its own work into as well: a flood fills it, the worker then
//! waits for itself for ever, and from then on all that is written stays in memory and in the journal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use fjall::{AbstractTree, Keyspace, KeyspaceCreateOptions};

use super::{StoreError, boot, journal};
use crate::KernelId;

/// A log's newest blocks lie in memory and in the journal until they have this many bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// What of all logs together may be written between two times that each has its table written, however small: what is
/// in memory of many logs is bounded by it, and so are the journals, which are kept while a log has something in them
/// only. Less than what fjall begins another journal after.
const ALL_BYTES: u64 = 32 << 20;
/// How many tables may wait for being written. The queue that they wait in is for the compactions after them as well,
/// and those are left out where it is full.
const WAITING_TABLES: usize = 64;
/// What reads may keep in memory, for all logs together.
const CACHE_BYTES: u64 = 16 << 20;
/// What is left free on the disk beside what is on its way there: for tables' heads, lists of tables, a new journal.
const RESERVE_BYTES: u64 = 8 << 20;
/// The file of a keyspace that says which of its tables are current. Where there is none, fjall takes no notice of it.
const CURRENT: &str = "current";
/// How many writes, at most, fail at once between two attempts to open the database anew.
const MAX_SKIPPED: u32 = 256;

pub(super) struct Database {
    folder: PathBuf,
    /// Whether the last write found no room.
    full: AtomicBool,
    open: RwLock<Option<Open>>,
    /// Whether a write failed, so that fjall will not take another.
    failed: AtomicBool,
    /// How many writes are to fail before the database is opened anew, and how many it is after the next failure.
    skip: AtomicU32,
    skip_next: AtomicU32,
    /// Given up last.
    lock: File,
}

/// The database as it is open. Keyspaces are asked for when they are needed: who kept one would keep the database from
/// being opened anew.
pub(super) struct Open {
    pub(super) database: fjall::Database,
    /// By id what is kept of each log, see [`Meta`](super::Meta), and where it begins.
    pub(super) logs: Keyspace,
    folder: PathBuf,
    /// What was written since all tables were, in bytes.
    since_all: AtomicU64,
    /// Held by who goes through all keyspaces, and by who deletes some: to ask for one that is deleted makes it anew.
    all: Mutex<()>,
}

impl Database {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = lock(folder)?;
        let open = Open::new(folder)?;
        boot::begin(&open)?;
        Ok(Self {
            folder: folder.to_owned(),
            full: AtomicBool::new(false),
            open: RwLock::new(Some(open)),
            failed: AtomicBool::new(false),
            skip: AtomicU32::new(0),
            skip_next: AtomicU32::new(1),
            lock,
        })
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Open) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(open) => read(open),
            None => Err(self.not_open()),
        }
    }

    /// Writes about so many bytes, where there is room for them; with `None` whether there is room or not, which is for
    /// what makes room.
    pub(super) fn write<T>(
        &self,
        bytes: Option<usize>,
        mut write: impl FnMut(&Open) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.failed.load(Ordering::Acquire) {
            self.reopen(bytes)?;
        }
        match self.try_write(bytes, &mut write) {
            // Where fjall gave up in the background nothing was wrong with this write.
            Err(_) if self.gave_up() => {
                self.reopen(bytes)?;
                let written = self.try_write(bytes, &mut write);
                self.gave_up();
                written
            }
            written => written,
        }
    }

    fn try_write<T>(
        &self,
        bytes: Option<usize>,
        write: &mut impl FnMut(&Open) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.expect_room(bytes)?;
        self.read(write)
    }

    /// Whether fjall takes no writes any more.
    fn gave_up(&self) -> bool {
        let gave_up = self
            .read(|open| Ok(open.database.persist(fjall::PersistMode::Buffer).is_err()))
            .unwrap_or(true);
        self.failed.store(gave_up, Ordering::Release);
        gave_up
    }

    fn reopen(&self, bytes: Option<usize>) -> Result<(), StoreError> {
        self.expect_room(bytes)?;
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return Err(self.not_open());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // The old one first: the folder is locked by it.
        *open = None;
        match Open::new(&self.folder) {
            Ok(new) => {
                *open = Some(new);
                self.failed.store(false, Ordering::Release);
                self.skip_next.store(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let skip = self.skip_next.load(Ordering::Relaxed);
                self.skip.store(skip, Ordering::Relaxed);
                self.skip_next.store((skip * 2).min(MAX_SKIPPED), Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// An error where the disk has no room for `bytes` more and for what is to be written as tables yet.
    pub(super) fn expect_room(&self, bytes: Option<usize>) -> Result<(), StoreError> {
        let (Some(bytes), Some(free)) = (bytes, free_bytes(&self.folder)) else {
            return Ok(());
        };
        let unwritten = self.read(|open| Ok(open.database.write_buffer_size())).unwrap_or(0);
        // Once there was no room, some more is needed: else it would come and go with each entry.
        let again = if self.full.load(Ordering::Relaxed) {
            RESERVE_BYTES
        } else {
            0
        };
        // Twice what comes: in the journal, and in a table.
        let needed = 2 * bytes as u64 + unwritten + RESERVE_BYTES + again;
        let full = free < needed;
        self.full.store(full, Ordering::Relaxed);
        if full {
            return Err(StoreError::Full {
                place: self.folder.display().to_string(),
                free,
                needed,
            });
        }
        Ok(())
    }

    fn not_open(&self) -> StoreError {
        StoreError::NotOpen {
            place: self.folder.display().to_string(),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = self.write(None, boot::end) {
            tracing::warn!(folder = %self.folder.display(), %error, "the logs were not closed cleanly");
        }
        *self.open.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        // To close the file is not enough: a process that is forked at this moment has it too, until it runs its program.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(folder = %self.folder.display(), %error, "the logs may look as if they were in use for a moment");
        }
    }
}

/// Makes the folder this process's alone. fjall locks it too, but looks after nothing before it has.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("in-use");
    let locked = || {
        fs::create_dir_all(folder)?;
        let file = File::create(&path)?;
        file.try_lock()?;
        Ok(file)
    };
    locked().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => failed(folder, "open the logs", fjall::Error::Locked),
        _ => StoreError::failed(format!("open the logs in {}", folder.display()), error),
    })
}

impl Open {
    pub(super) fn new(folder: &Path) -> Result<Self, StoreError> {
        let failed = |error| failed(folder, "open the logs", error);
        match journal::mend(folder) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::error!(folder = %folder.display(), bytes, "a journal of the logs was damaged; the damaged part was cut out, and readers will learn that entries are missing");
            }
            Err(error @ journal::JournalError::UnknownFormat { .. }) => {
                return Err(StoreError::failed(
                    format!("open the logs in {}", folder.display()),
                    error,
                ));
            }
            // What is wrong with the folder fjall tells as well.
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "the journals of the logs cannot be checked")
            }
        }
        put_foreign_aside(folder)?;
        let database = match open_database(folder) {
            // Which keyspace cannot be opened, fjall does not say.
            Err(fjall::Error::Storage(_)) => {
                put_damaged_aside(folder);
                open_database(folder)
            }
            opened => opened,
        }
        .map_err(failed)?;
        let logs = database.keyspace("logs", options).map_err(failed)?;
        Ok(Self {
            // What was in the journals, and is in memory again.
            since_all: AtomicU64::new(database.write_buffer_size()),
            database,
            logs,
            folder: folder.to_owned(),
            all: Mutex::default(),
        })
    }

    pub(super) fn create(&self, id: KernelId) -> fjall::Result<()> {
        for name in names(id) {
            self.database.keyspace(&name, options)?;
        }
        Ok(())
    }

    pub(super) fn blocks(&self, id: KernelId) -> Result<Keyspace, StoreError> {
        self.keyspace(id, &names(id)[0])
    }

    pub(super) fn index(&self, id: KernelId) -> Result<Keyspace, StoreError> {
        self.keyspace(id, &names(id)[1])
    }

    fn keyspace(&self, id: KernelId, name: &str) -> Result<Keyspace, StoreError> {
        if !self.database.keyspace_exists(name) {
            let reason = format!(
                "its files cannot be read and were put aside in {}; remove the log to start another",
                damaged(&self.folder).display()
            );
            return Err(StoreError::damaged(id, reason));
        }
        self.database
            .keyspace(name, options)
            .map_err(|error| self.failed("open a log", error))
    }

    /// The log's keyspaces that there are.
    fn existing(&self, id: KernelId) -> fjall::Result<Vec<Keyspace>> {
        names(id)
            .iter()
            .filter(|name| self.database.keyspace_exists(name))
            .map(|name| self.database.keyspace(name, options))
            .collect()
    }

    /// Deletes the log's keyspaces.
    pub(super) fn delete(&self, id: KernelId) -> fjall::Result<()> {
        let _all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for keyspace in self.existing(id)? {
            // A journal may hold on to the keyspace for a while. Its tables are to go now.
            keyspace.clear()?;
            self.database.delete_keyspace(keyspace)?;
        }
        Ok(())
    }

    /// Deletes the files of tables that were dropped, and journals that nobody needs any more: fjall does so when it
    /// begins another table.
    pub(super) fn give_back(&self) -> fjall::Result<()> {
        self.logs.rotate_memtable().map(drop)
    }

    /// Has all logs write what they have in the journals only, so that no journal but the newest is needed.
    pub(super) fn let_go_of_journals(&self) -> Result<(), StoreError> {
        if self.database.journal_count() > 1 {
            self.write_all_tables()?;
        }
        Ok(())
    }

    fn write_all_tables(&self) -> Result<(), StoreError> {
        let failed = |error| self.failed("write the logs' tables", error);
        let _all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        self.since_all.store(0, Ordering::Relaxed);
        for name in self.database.list_keyspace_names() {
            self.wait_while(|| self.database.outstanding_flushes() >= WAITING_TABLES)?;
            self.database
                .keyspace(&name, options)
                .map_err(failed)?
                .rotate_memtable()
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Makes what was written survive the machine. The journal's file is synced from outside: fjall would let nobody
    /// write meanwhile.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::failed(format!("sync the logs in {}", self.folder.display()), error);
        // Older journals were synced by fjall when it began the newest.
        let mut newest: Option<(u64, PathBuf)> = None;
        for file in fs::read_dir(&self.folder).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "jnl")
                && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())
                && newest.as_ref().is_none_or(|(newest, _)| *newest < number)
            {
                newest = Some((number, path));
            }
        }
        let Some((_, path)) = newest else { return Ok(()) };
        fs::File::open(path).and_then(|file| file.sync_data()).map_err(failed)
    }

    /// So many bytes are about to be written. Has tables written that are large enough, and waits where those before
    /// them are not written yet.
    pub(super) fn expect_bytes(&self, bytes: usize) -> Result<(), StoreError> {
        let bytes = bytes as u64;
        if self.since_all.fetch_add(bytes, Ordering::Relaxed) + bytes > ALL_BYTES {
            self.write_all_tables()?;
        }
        self.write_large_table(&self.logs)
    }

    /// Has the keyspace's table written where it is large, and waits where those before it are not written yet.
    pub(super) fn write_large_table(&self, keyspace: &Keyspace) -> Result<(), StoreError> {
        self.wait_while(|| keyspace.sealed_memtable_count() > 1 || keyspace.tree.l0_run_count() >= 16)?;
        if keyspace.tree.active_memtable().size() >= MEMTABLE_BYTES {
            keyspace
                .rotate_memtable()
                .map_err(|error| self.failed("write a log's tables", error))?;
        }
        Ok(())
    }

    /// Waits for tables that are being written, as fjall itself does, but not for ever: where one cannot be written, fjall
    /// waits for it still.
    fn wait_while(&self, too_many: impl Fn() -> bool) -> Result<(), StoreError> {
        while too_many() {
            self.database
                .persist(fjall::PersistMode::Buffer)
                .map_err(|error| self.failed("write the logs' tables", error))?;
            // Nothing tells when a table is written. This is the log's own thread, and it has to be slowed.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    pub(super) fn failed(&self, action: &str, error: fjall::Error) -> StoreError {
        failed(&self.folder, action, error)
    }
}

fn failed(folder: &Path, action: &str, error: fjall::Error) -> StoreError {
    let reason = match error {
        fjall::Error::Locked => "another process has it open".to_owned(),
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        error => error.to_string(),
    };
    StoreError::failed(format!("{action} in {}", folder.display()), reason)
}

fn open_database(folder: &Path) -> fjall::Result<fjall::Database> {
    fjall::Database::builder(folder)
        .cache_size(CACHE_BYTES)
        // Beyond this fjall would have its worker write tables: see above.
        .max_journaling_size(u64::MAX)
        // With several, the first one passes compactions on to the others by sending them to itself again and again: as
        // long as there is one it takes a whole core.
        .worker_threads(1)
        .open()
}

/// How a keyspace is made. That of one that there is stays as it was made.
fn options() -> KeyspaceCreateOptions {
    // See above: never by fjall itself.
    KeyspaceCreateOptions::default().max_memtable_size(u64::MAX)
}

/// The keyspaces of a log: its blocks, its index.
fn names(id: KernelId) -> [String; 2] {
    [id.to_string(), format!("{id}.index")]
}

fn damaged(folder: &Path) -> PathBuf {
    folder.join("damaged")
}

/// Moves folders that are no keyspaces, such as `lost+found`, out of the database's way: fjall would panic.
fn put_foreign_aside(folder: &Path) -> Result<(), StoreError> {
    let Ok(keyspaces) = fs::read_dir(folder.join("keyspaces")) else {
        return Ok(());
    };
    for keyspace in keyspaces.flatten() {
        let name = keyspace.file_name();
        let is_keyspace = name.to_str().is_some_and(|name| name.parse::<u64>().is_ok());
        if is_keyspace || !keyspace.path().is_dir() {
            continue;
        }
        let path = keyspace.path();
        let aside = damaged(folder).join(&name);
        fs::create_dir_all(damaged(folder))
            .and_then(|()| fs::rename(&path, &aside))
            .map_err(|error| StoreError::failed(format!("move {}, which is no log, aside", path.display()), error))?;
        tracing::warn!(path = %path.display(), aside = %aside.display(), "moved a folder aside that is no log");
    }
    Ok(())
}

/// Moves the files of keyspaces that cannot be opened out of the database's way.
fn put_damaged_aside(folder: &Path) {
    let Ok(keyspaces) = fs::read_dir(folder.join("keyspaces")) else {
        return;
    };
    let mut is_any_sound = false;
    let mut broken = Vec::new();
    for keyspace in keyspaces.flatten() {
        let path = keyspace.path();
        // The first holds the names of the others. Without it there is no database.
        if keyspace.file_name() == "0" || !path.join(CURRENT).exists() {
            continue;
        }
        match lsm_tree::Config::new(&path, Default::default(), Default::default()).open() {
            Ok(_) => is_any_sound = true,
            Err(error) => broken.push((keyspace.file_name(), path, error)),
        }
    }
    for (name, path, error) in broken {
        if !is_damage(&error, is_any_sound) {
            tracing::error!(path = %path.display(), %error, "files of a log cannot be read at the moment");
            continue;
        }
        let aside = damaged(folder).join(name);
        let moved = fs::create_dir_all(damaged(folder)).and_then(|()| fs::rename(&path, &aside));
        tracing::error!(path = %path.display(), aside = %aside.display(), %error, ?moved, "moved damaged files of a log aside");
    }
}

/// Whether the files themselves are damaged, and not what reads them at its limits, as of open files. A disk that cannot
/// read them is at fault itself where it can read no others.
fn is_damage(error: &lsm_tree::Error, is_any_sound: bool) -> bool {
    use io::ErrorKind::{
        OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut,
    };
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let lsm_tree::Error::Io(error) = error else {
        return true;
    };
    match (error.raw_os_error(), error.kind()) {
        (Some(EIO), _) => is_any_sound,
        (Some(ENFILE | EMFILE), _) => false,
        (_, OutOfMemory | PermissionDenied | ReadOnlyFilesystem | StaleNetworkFileHandle | StorageFull | TimedOut) => {
            false
        }
        _ => true,
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}
