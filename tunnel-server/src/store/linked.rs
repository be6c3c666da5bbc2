//! Where control links are, for the time after a crash.

use std::net::SocketAddr;

use sqlx::Row as _;
use tunnel_proto::DeviceId;

use super::rows::name;
use super::{Store, StoreError};

impl Store {
    /// Keeps where a device's link over UDP is.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn device_linked(&self, id: &DeviceId, from: SocketAddr) -> Result<(), StoreError> {
        let (id, from) = (id.clone(), from.to_string());
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query("UPDATE devices SET linked_from = ? WHERE id = ?")
                    .bind(from)
                    .bind(id.as_str())
                    .execute(&mut w.connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Forgets where a device's link over UDP was, unless a newer link is elsewhere.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn device_left(&self, id: &DeviceId, from: SocketAddr) -> Result<(), StoreError> {
        let (id, from) = (id.clone(), from.to_string());
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query("UPDATE devices SET linked_from = NULL WHERE id = ? AND linked_from = ?")
                    .bind(id.as_str())
                    .bind(from)
                    .execute(&mut w.connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Returns the devices that had a link over UDP when the store was last written, and where.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn linked_devices(&self) -> Result<Vec<(DeviceId, SocketAddr)>, StoreError> {
        let rows = sqlx::query("SELECT id, linked_from FROM devices WHERE linked_from IS NOT NULL")
            .fetch_all(&self.inner.readers)
            .await?;
        let mut devices = Vec::with_capacity(rows.len());
        for row in &rows {
            let from: String = row.try_get("linked_from")?;
            // One that cannot be read is of no use, and does no harm.
            if let Ok(from) = from.parse() {
                devices.push((name(row, "id")?, from));
            }
        }
        Ok(devices)
    }
}
