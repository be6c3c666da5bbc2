//! Where control links are, for the time after a crash.

use std::net::SocketAddr;

use sqlx::Row as _;
use tunnel_proto::DeviceId;

use super::rows::name;
use super::{Store, StoreError};

impl Store {
    /// Keeps where a device's link over UDP is; `None` if it has none.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn device_linked_from(
        &self,
        id: &DeviceId,
        from: Option<SocketAddr>,
    ) -> Result<(), StoreError> {
        let (id, from) = (id.clone(), from.map(|from| from.to_string()));
        self.write(move |w| {
            Box::pin(async move {
                sqlx::query("UPDATE devices SET linked_from = ?1 WHERE id = ?2 AND linked_from IS NOT ?1")
                    .bind(from)
                    .bind(id.as_str())
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
