//! Reading columns into types that cannot be wrong.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tunnel_proto::UnixTime;
use tunnel_proto::keys::KeyHash;

use super::StoreError;

/// Reads text that is a name.
pub(super) fn name<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    row.try_get::<String, _>(column)?
        .parse()
        .map_err(|_| StoreError::Damaged(column))
}

/// Reads names that are joined by commas, as `group_concat` makes them; none for `NULL`.
pub(super) fn names<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<Vec<T>, StoreError> {
    let Some(joined) = row.try_get::<Option<String>, _>(column)? else {
        return Ok(Vec::new());
    };
    joined
        .split(',')
        .map(|text| text.parse().map_err(|_| StoreError::Damaged(column)))
        .collect()
}

/// Reads a fixed number of bytes.
pub(super) fn bytes<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], StoreError> {
    row.try_get::<Vec<u8>, _>(column)?
        .try_into()
        .map_err(|_| StoreError::Damaged(column))
}

/// Reads the hash of a key.
pub(super) fn key(row: &SqliteRow, column: &'static str) -> Result<KeyHash, StoreError> {
    bytes(row, column).map(KeyHash::from_bytes)
}

/// Reads a number that is not negative.
pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| StoreError::Damaged(column))
}

/// Reads a time.
pub(super) fn time(row: &SqliteRow, column: &'static str) -> Result<UnixTime, StoreError> {
    number(row, column).map(UnixTime::from_secs)
}

/// Reads a time that may be absent.
pub(super) fn time_if_any(row: &SqliteRow, column: &'static str) -> Result<Option<UnixTime>, StoreError> {
    let secs = row.try_get::<Option<i64>, _>(column)?;
    secs.map(|secs| {
        u64::try_from(secs)
            .map(UnixTime::from_secs)
            .map_err(|_| StoreError::Damaged(column))
    })
    .transpose()
}

/// Reads JSON.
pub(super) fn json<T: DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(&row.try_get::<String, _>(column)?).map_err(|_| StoreError::Damaged(column))
}

/// Writes JSON. Lists of names and plain structs always can be written.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Damaged("value"))
}

/// Returns a time as the database holds it.
pub(super) fn secs(time: UnixTime) -> i64 {
    signed(time.as_secs())
}

/// Returns a number as the database holds it; what is too large is the largest.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
