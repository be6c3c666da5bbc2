//! Devices in quarantine and operators who are disabled: trust that is taken away, and may be given back.

use std::collections::BTreeMap;

use sqlx::Row as _;
use tunnel_proto::names::Subject;
use tunnel_proto::{Code, Identity, UnixTime};

use super::approvals::strike_agreements;
use super::fleet::is_enrolled;
use super::records::{Member, Suspension};
use super::rows::{name, secs, time};
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, bounded};

impl Store {
    /// Suspends a device or operator, and says whether it was not suspended before; `None` if there is none of the name.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn suspend(
        &self,
        member: &Member,
        reason: Option<String>,
        by: &str,
        now: UnixTime,
    ) -> Result<Option<bool>, StoreError> {
        let (member, by, identity) = (member.clone(), bounded(by), self.identity_of(member));
        let reason = reason.as_deref().map(bounded);
        self.write(move |w| {
            Box::pin(async move {
                if !is_enrolled(w, &member).await? {
                    return Ok(None);
                }
                let done = sqlx::query(
                    "INSERT OR IGNORE INTO suspended (identity, reason, suspended_by, suspended_at)
                     VALUES (?, ?, ?, ?)",
                )
                .bind(identity.to_string())
                .bind(reason.as_deref())
                .bind(&by)
                .bind(secs(now))
                .execute(&mut w.connection)
                .await?;
                if done.rows_affected() == 0 {
                    return Ok(Some(false));
                }
                let operator = match &member {
                    Member::Device(_) => None,
                    Member::Operator(operator) => Some(operator.clone()),
                };
                w.append(&match member {
                    Member::Device(device) => Event::DeviceQuarantined { device, reason, by },
                    Member::Operator(operator) => Event::OperatorDisabled { operator, reason, by },
                })
                .await?;
                if let Some(operator) = operator {
                    strike_agreements(w, &operator).await?;
                }
                Ok(Some(true))
            })
        })
        .await
    }

    /// Lifts a suspension, and says whether there was one.
    ///
    /// # Errors
    /// Returns an error if it is not on the disk.
    pub async fn lift_suspension(
        &self,
        member: &Member,
        reason: Option<String>,
        by: &str,
    ) -> Result<bool, StoreError> {
        let (member, by, identity) = (member.clone(), bounded(by), self.identity_of(member));
        let reason = reason.as_deref().map(bounded);
        self.write(move |w| {
            Box::pin(async move {
                let done = sqlx::query("DELETE FROM suspended WHERE identity = ?")
                    .bind(identity.to_string())
                    .execute(&mut w.connection)
                    .await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                w.append(&match member {
                    Member::Device(device) => Event::DeviceReleased { device, reason, by },
                    Member::Operator(operator) => Event::OperatorEnabled { operator, reason, by },
                })
                .await?;
                Ok(true)
            })
        })
        .await
    }

    /// Returns who is suspended.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn suspended(&self) -> Result<BTreeMap<Identity, Suspension>, StoreError> {
        sqlx::query("SELECT * FROM suspended")
            .fetch_all(&self.inner.readers)
            .await?
            .iter()
            .map(|row| {
                let suspension = Suspension {
                    reason: row.try_get("reason")?,
                    by: row.try_get("suspended_by")?,
                    at: time(row, "suspended_at")?,
                };
                Ok((name(row, "identity")?, suspension))
            })
            .collect()
    }

    fn identity_of(&self, member: &Member) -> Identity {
        match member {
            Member::Device(id) => Identity::device(&self.inner.fleet, id),
            Member::Operator(name) => Identity::operator(&self.inner.fleet, name),
        }
    }
}

/// Returns the code of a suspension of an identity, if there is one.
pub(super) async fn suspension_of(w: &mut Write, identity: &Identity) -> Result<Option<Code>, StoreError> {
    let row = sqlx::query("SELECT 1 FROM suspended WHERE identity = ?")
        .bind(identity.to_string())
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(row.map(|_| code_of(&identity.subject)))
}

/// Returns the code that a suspended device or operator is refused with.
pub(crate) const fn code_of(subject: &Subject) -> Code {
    match subject {
        Subject::Operator(_) => Code::OperatorDisabled,
        Subject::Device(_) | Subject::Server(_) => Code::Quarantined,
    }
}
