//! Opening the file: its mode, its settings, its schema.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, SqlitePool};
use tunnel_proto::TrustDomain;

use super::StoreError;

/// How long one process waits for another that writes: many times what a batch takes.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Connections for reading at once. Reads are short, and each connection costs a thread.
const READERS: u32 = 4;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Makes the file if it is not there, brings its schema up to date, and checks that it is the fleet's.
pub(super) async fn prepare(path: &Path, fleet: &TrustDomain) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    // Held until the end of this function: two processes that migrate at once would trip over each other.
    let lock = lock_directory(path).await.map_err(failed)?;
    if create(path).map_err(failed)? {
        lock.sync_all().map_err(failed)?;
    }
    let mut connection = options(path).connect().await?;
    // Not `run`: its future is not `Send` for every lifetime, and a store is opened in tasks too.
    let migrated = MIGRATIONS.run_direct(None, &mut connection, false).await;
    migrated.map_err(|error| StoreError::Migrate(Arc::new(error)))?;
    claim(&mut connection, fleet).await?;
    connection.close().await?;
    Ok(())
}

/// Locks the directory of a file, for as long as what is returned lives. No file is left behind.
async fn lock_directory(path: &Path) -> io::Result<File> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let lock = File::open(directory)?;
    let locked =
        tokio::task::spawn_blocking(move || flock(&lock, FlockOperation::LockExclusive).map(|()| lock));
    Ok(locked.await.map_err(io::Error::other)??)
}

/// Opens the connections that read.
pub(super) async fn readers(path: &Path) -> Result<SqlitePool, StoreError> {
    let options = options(path).pragma("query_only", "on");
    Ok(SqlitePoolOptions::new()
        .max_connections(READERS)
        .connect_with(options)
        .await?)
}

/// Returns how every connection is opened: a commit is on the disk when it returns.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(LOCK_WAIT)
        .disable_statement_logging()
}

/// Makes an empty file that only its owner reads; SQLite gives its companions the same mode. Says whether it was made.
fn create(path: &Path) -> io::Result<bool> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(file) => file.sync_all().map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

async fn claim(connection: &mut SqliteConnection, fleet: &TrustDomain) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO fleet (only, trust_domain) VALUES (1, ?)")
        .bind(fleet.as_str())
        .execute(&mut *connection)
        .await?;
    let owner: String = sqlx::query_scalar("SELECT trust_domain FROM fleet")
        .fetch_one(&mut *connection)
        .await?;
    if owner == fleet.as_str() {
        Ok(())
    } else {
        Err(StoreError::OtherFleet(owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_migration_has_the_number_after_the_one_before() {
        let numbers: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let wanted: Vec<_> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, wanted);
    }
}
