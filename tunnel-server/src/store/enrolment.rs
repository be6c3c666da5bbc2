//! Enrolment: one-time codes, the newcomers that use them, and renewals.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tunnel_proto::ids::hex;
use tunnel_proto::keys::KeyHash;
use tunnel_proto::names::{GroupName, Subject};
use tunnel_proto::{Code, Identity, Refusal, TrustDomain, UnixTime};

use super::records::{Certificate, Enrolled, Enrolment, Issue, Makes, NewEnrolCode};
use super::rows::{bytes, json, key, name, number, secs, time, to_json};
use super::suspended::suspension_of;
use super::writer::Write;
use super::{Store, StoreError};
use crate::audit::{Event, MemberKind, bounded};
use crate::control::OWN_GROUPS;

/// How often guessed codes are recorded at most: somebody who guesses does not write our log (THREATS AUD-05).
const GUESSES_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Adds an enrolment code.
    ///
    /// # Errors
    /// Returns an error if the code is not on the disk.
    pub async fn add_enrol_code(&self, code: NewEnrolCode, now: UnixTime) -> Result<(), StoreError> {
        self.write(move |w| Box::pin(async move { insert_code(w, code, now).await }))
            .await
    }

    /// Enrols a newcomer: checks its code, has the certificate issued, and consumes one use, all or nothing.
    ///
    /// The same key with the same code gets the same certificate again, so that an answer that was lost can be asked for
    /// once more (THREATS ENR-06).
    ///
    /// # Errors
    /// The outer error tells that the store does not work, the inner one why the newcomer is refused.
    pub async fn enrol(
        &self,
        enrolment: Enrolment,
        now: UnixTime,
        issue: Issue,
    ) -> Result<Result<Enrolled, Refusal>, StoreError> {
        // Looked up before the writer is asked: who guesses codes takes no turn from those who have one.
        let known = sqlx::query("SELECT 1 FROM enrol_codes WHERE secret_hash = ?")
            .bind(&enrolment.secret_hash[..])
            .fetch_optional(&self.inner.readers)
            .await?;
        if known.is_none() {
            self.guessed(&enrolment.source).await?;
            return Ok(Err(Code::EnrolTokenUnknown.into()));
        }
        let (fleet, source) = (self.inner.fleet.clone(), enrolment.source.clone());
        let outcome = self
            .write(move |w| Box::pin(async move { enrol(w, &fleet, enrolment, now, issue).await }))
            .await?;
        if matches!(&outcome, Err(refusal) if refusal.code == Code::EnrolTokenUnknown) {
            self.guessed(&source).await?;
        }
        Ok(outcome)
    }

    /// Records a renewed certificate.
    ///
    /// # Errors
    /// The outer error tells that the store does not work, the inner one that the identity or key has lost its trust.
    pub async fn renewed(
        &self,
        identity: &Identity,
        certificate: Certificate,
        now: UnixTime,
    ) -> Result<Result<(), Refusal>, StoreError> {
        let identity = identity.clone();
        self.write(move |w| Box::pin(async move { renewed(w, identity, certificate, now).await }))
            .await
    }

    async fn guessed(&self, source: &str) -> Result<(), StoreError> {
        let due = {
            let mut guesses = self
                .inner
                .guesses
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            guesses.count(Instant::now())
        };
        match due {
            Some(count) => {
                self.record(Event::EnrolGuessed {
                    count,
                    last_source: bounded(source),
                })
                .await
            }
            None => Ok(()),
        }
    }
}

/// Guesses since the last record of them.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    count: u64,
    recorded: Option<Instant>,
}

impl Guesses {
    /// Counts one, and returns how many are to be recorded now, if any.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self
            .recorded
            .is_some_and(|recorded| now.duration_since(recorded) < GUESSES_EVERY)
        {
            return None;
        }
        self.recorded = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// Names a code without telling it.
fn code_name(secret_hash: &[u8; 32]) -> String {
    hex(&secret_hash[..4])
}

async fn insert_code(w: &mut Write, code: NewEnrolCode, now: UnixTime) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO enrol_codes (secret_hash, kind, ids, group_name, uses_left, expires_at, replaces, made_by)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&code.secret_hash[..])
    .bind(code.makes.kind().as_str())
    .bind(to_json(&code.makes.ids())?)
    .bind(code.group.as_ref().map(GroupName::as_str))
    .bind(code.uses)
    .bind(secs(code.expires_at))
    .bind(code.replace)
    .bind(&code.by)
    .execute(&mut w.connection)
    .await?;
    // Codes that nobody can use any more are gone for good; the chain remembers them.
    sqlx::query("DELETE FROM enrol_codes WHERE expires_at < ?")
        .bind(secs(now.before(Duration::from_secs(30 * 24 * 3600))))
        .execute(&mut w.connection)
        .await?;
    w.append(&Event::EnrolCodeMade {
        code: code_name(&code.secret_hash),
        makes: code.makes.kind(),
        ids: code.makes.ids(),
        group: code.group,
        uses: code.uses,
        expires_at: code.expires_at,
        replace: code.replace,
        by: code.by,
    })
    .await
}

/// A code as it is stored.
struct StoredCode {
    secret_hash: [u8; 32],
    makes: Makes,
    group: Option<GroupName>,
    uses_left: u64,
    expires_at: UnixTime,
    replace: bool,
    made_by: Option<String>,
}

impl StoredCode {
    async fn load(w: &mut Write, secret_hash: &[u8; 32]) -> Result<Option<Self>, StoreError> {
        sqlx::query("SELECT * FROM enrol_codes WHERE secret_hash = ?")
            .bind(&secret_hash[..])
            .fetch_optional(&mut w.connection)
            .await?
            .map(|row| Self::read(&row))
            .transpose()
    }

    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let makes = match row.try_get::<String, _>("kind")?.as_str() {
            "device" => Makes::Devices(json(row, "ids")?),
            "operator" => Makes::Operators(json(row, "ids")?),
            _ => return Err(StoreError::Damaged("kind of an enrolment code")),
        };
        let group = match row.try_get::<Option<String>, _>("group_name")? {
            Some(_) => Some(name(row, "group_name")?),
            None => None,
        };
        Ok(Self {
            secret_hash: bytes(row, "secret_hash")?,
            makes,
            group,
            uses_left: number(row, "uses_left")?,
            expires_at: time(row, "expires_at")?,
            replace: row.try_get("replaces")?,
            made_by: row.try_get("made_by")?,
        })
    }

    /// Returns whom the code makes of a newcomer that wants an id or leaves it to the code.
    fn subject(&self, wanted: Option<&str>) -> Result<Subject, Refusal> {
        match &self.makes {
            Makes::Devices(ids) => choose(ids, wanted).map(Subject::Device),
            Makes::Operators(names) => choose(names, wanted).map(Subject::Operator),
        }
    }
}

/// Chooses among the ids of a code; any id if it has none.
fn choose<T>(allowed: &[T], wanted: Option<&str>) -> Result<T, Refusal>
where
    T: Clone + PartialEq + std::str::FromStr<Err: std::fmt::Display>,
{
    match (wanted, allowed) {
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Refusal::new(
            Code::EnrolCsr,
            "the code leaves the choice of the id: name one",
        )),
        (Some(wanted), _) => {
            let id: T = wanted
                .parse()
                .map_err(|error: T::Err| Refusal::new(Code::BadName, error.to_string()))?;
            if allowed.is_empty() || allowed.contains(&id) {
                Ok(id)
            } else {
                Err(Refusal::new(Code::EnrolCsr, "the code is for another id"))
            }
        }
    }
}

async fn enrol(
    w: &mut Write,
    fleet: &TrustDomain,
    newcomer: Enrolment,
    now: UnixTime,
    issue: Issue,
) -> Result<Result<Enrolled, Refusal>, StoreError> {
    let unknown = || Ok(Err(Code::EnrolTokenUnknown.into()));
    let Some(code) = StoredCode::load(w, &newcomer.secret_hash).await? else {
        return unknown();
    };
    if let Some(enrolled) = answered_before(w, &newcomer, now).await? {
        return Ok(Ok(enrolled));
    }
    if code.uses_left == 0 || now >= code.expires_at {
        return unknown();
    }
    let admitted = match admit(w, fleet, &code, &newcomer).await? {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(w, &newcomer, refusal).await,
    };
    let issued = catch_unwind(AssertUnwindSafe(|| issue(&admitted.identity)));
    let certificate = match issued.unwrap_or_else(|_| Err(Code::Internal.into())) {
        Ok(certificate) => certificate,
        Err(refusal) => return refuse(w, &newcomer, refusal).await,
    };
    take_in(w, &code, &newcomer, &admitted, &certificate, now).await?;
    Ok(Ok(Enrolled {
        identity: admitted.identity,
        certificate,
        replaced: admitted.replaced,
    }))
}

/// Finds what the same key with the same code was given before, if it still counts.
async fn answered_before(
    w: &mut Write,
    newcomer: &Enrolment,
    now: UnixTime,
) -> Result<Option<Enrolled>, StoreError> {
    let row = sqlx::query(
        "SELECT * FROM certificates WHERE code = ? AND key_hash = ? AND not_after > ?
         ORDER BY not_after DESC LIMIT 1",
    )
    .bind(&newcomer.secret_hash[..])
    .bind(&newcomer.key.as_bytes()[..])
    .bind(secs(now))
    .fetch_optional(&mut w.connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let identity: Identity = name(&row, "identity")?;
    let same_id = newcomer
        .wanted
        .as_deref()
        .is_none_or(|wanted| wanted == id_of(&identity.subject));
    if !same_id
        || is_revoked(w, &identity, &newcomer.key).await?
        || suspension_of(w, &identity).await?.is_some()
    {
        return Ok(None);
    }
    let certificate = Certificate {
        chain_pem: row.try_get("chain_pem")?,
        serial: row.try_get("serial")?,
        key: key(&row, "key_hash")?,
        not_after: time(&row, "not_after")?,
    };
    Ok(Some(Enrolled {
        identity,
        certificate,
        replaced: Vec::new(),
    }))
}

/// A newcomer that may have its certificate.
struct Admitted {
    identity: Identity,
    replaced: Vec<KeyHash>,
}

/// Checks id and key against the code and against who is there already.
async fn admit(
    w: &mut Write,
    fleet: &TrustDomain,
    code: &StoredCode,
    newcomer: &Enrolment,
) -> Result<Result<Admitted, Refusal>, StoreError> {
    let subject = match code.subject(newcomer.wanted.as_deref()) {
        Ok(subject) => subject,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let identity = Identity {
        trust_domain: fleet.clone(),
        subject,
    };
    if identity_is_revoked(w, &identity).await? {
        return Ok(Err(Code::Revoked.into()));
    }
    if let Some(code) = suspension_of(w, &identity).await? {
        return Ok(Err(code.into()));
    }
    if widens_own_rights(w, code, &identity.subject).await? {
        return Ok(Err(Refusal::new(Code::PolicyDeny, OWN_GROUPS)));
    }
    if key_is_revoked(w, &newcomer.key).await? || key_is_of_another(w, &newcomer.key, &identity).await? {
        w.append(&Event::KeyReused {
            code: code_name(&code.secret_hash),
            wanted: id_of(&identity.subject).to_owned(),
            key: newcomer.key,
            source: bounded(&newcomer.source),
        })
        .await?;
        return Ok(Err(Refusal::new(
            Code::EnrolCsr,
            "the key was used before: make a new one",
        )));
    }
    let replaced: Vec<KeyHash> = match current_key(w, &identity.subject).await? {
        None => Vec::new(),
        Some(current) if current == newcomer.key => Vec::new(),
        Some(_) if code.replace => other_keys(w, &identity, &newcomer.key).await?,
        Some(_) => return Ok(Err(Code::EnrolTaken.into())),
    };
    Ok(Ok(Admitted { identity, replaced }))
}

/// Says whether a code would put the one who made it into a group (THREATS POL-12).
async fn widens_own_rights(w: &mut Write, code: &StoredCode, subject: &Subject) -> Result<bool, StoreError> {
    let (Subject::Operator(name), Some(group)) = (subject, &code.group) else {
        return Ok(false);
    };
    if code.made_by.as_deref() != Some(&format!("operator/{name}")) {
        return Ok(false);
    }
    let found = sqlx::query("SELECT 1 FROM memberships WHERE kind = ? AND name = ? AND group_name = ?")
        .bind(MemberKind::Operator.as_str())
        .bind(name.as_str())
        .bind(group.as_str())
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(found.is_none())
}

/// Records a refusal. Codes that are not known were dealt with before.
async fn refuse(
    w: &mut Write,
    newcomer: &Enrolment,
    refusal: Refusal,
) -> Result<Result<Enrolled, Refusal>, StoreError> {
    w.append(&Event::EnrolRefused {
        code: code_name(&newcomer.secret_hash),
        wanted: newcomer.wanted.as_deref().map(bounded),
        key: newcomer.key,
        reason: refusal.code,
        source: bounded(&newcomer.source),
    })
    .await?;
    Ok(Err(refusal))
}

/// Consumes one use of the code and writes the newcomer down.
async fn take_in(
    w: &mut Write,
    code: &StoredCode,
    newcomer: &Enrolment,
    admitted: &Admitted,
    certificate: &Certificate,
    now: UnixTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE enrol_codes SET uses_left = uses_left - 1 WHERE secret_hash = ?")
        .bind(&code.secret_hash[..])
        .execute(&mut w.connection)
        .await?;
    for old in &admitted.replaced {
        super::fleet::revoke_key(w, old, now).await?;
    }
    let identity = &admitted.identity;
    keep_certificate(w, identity, certificate, Some(&code.secret_hash), now).await?;
    let (code_text, group, replaced) = (
        code_name(&code.secret_hash),
        code.group.clone(),
        admitted.replaced.clone(),
    );
    let (key, expires_at, source) = (certificate.key, certificate.not_after, bounded(&newcomer.source));
    let event = match &identity.subject {
        Subject::Device(id) => {
            keep_member(
                w,
                MemberKind::Device,
                id.as_str(),
                group.as_ref(),
                certificate,
                now,
            )
            .await?;
            Event::DeviceEnrolled {
                device: id.clone(),
                key,
                group,
                code: code_text,
                replaced,
                expires_at,
                source,
            }
        }
        Subject::Operator(name) => {
            keep_member(
                w,
                MemberKind::Operator,
                name.as_str(),
                group.as_ref(),
                certificate,
                now,
            )
            .await?;
            Event::OperatorEnrolled {
                operator: name.clone(),
                key,
                group,
                code: code_text,
                replaced,
                expires_at,
                source,
            }
        }
        Subject::Server(_) => return Err(StoreError::Damaged("kind of an enrolment code")),
    };
    w.append(&event).await
}

async fn keep_certificate(
    w: &mut Write,
    identity: &Identity,
    certificate: &Certificate,
    code: Option<&[u8; 32]>,
    now: UnixTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO certificates (serial, identity, key_hash, code, chain_pem, issued_at, not_after)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&certificate.serial)
    .bind(identity.to_string())
    .bind(&certificate.key.as_bytes()[..])
    .bind(code.map(|hash| &hash[..]))
    .bind(&certificate.chain_pem)
    .bind(secs(now))
    .bind(secs(certificate.not_after))
    .execute(&mut w.connection)
    .await?;
    Ok(())
}

/// Writes a device or operator down, or gives it its new key, and puts it into the code's group.
async fn keep_member(
    w: &mut Write,
    kind: MemberKind,
    name: &str,
    group: Option<&GroupName>,
    certificate: &Certificate,
    now: UnixTime,
) -> Result<(), StoreError> {
    let statement = match kind {
        MemberKind::Device => {
            "INSERT INTO devices (id, key_hash, enrolled_at, cert_expires_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET key_hash = ?2, cert_expires_at = ?4"
        }
        MemberKind::Operator => {
            "INSERT INTO operators (name, key_hash, enrolled_at, cert_expires_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET key_hash = ?2, cert_expires_at = ?4"
        }
    };
    sqlx::query(statement)
        .bind(name)
        .bind(&certificate.key.as_bytes()[..])
        .bind(secs(now))
        .bind(secs(certificate.not_after))
        .execute(&mut w.connection)
        .await?;
    if let Some(group) = group
        && super::fleet::join(w, kind, name, group).await?
    {
        super::facts::count_change(w, kind, name).await?;
    }
    Ok(())
}

async fn renewed(
    w: &mut Write,
    identity: Identity,
    certificate: Certificate,
    now: UnixTime,
) -> Result<Result<(), Refusal>, StoreError> {
    if is_revoked(w, &identity, &certificate.key).await? {
        return Ok(Err(Code::Revoked.into()));
    }
    if let Some(code) = suspension_of(w, &identity).await? {
        return Ok(Err(code.into()));
    }
    if key_is_of_another(w, &certificate.key, &identity).await? {
        return Ok(Err(Refusal::new(
            Code::EnrolCsr,
            "the key was used before: make a new one",
        )));
    }
    let (kind, id) = match &identity.subject {
        Subject::Device(id) => (MemberKind::Device, id.as_str()),
        Subject::Operator(name) => (MemberKind::Operator, name.as_str()),
        Subject::Server(_) => return Ok(Err(Code::CertUsage.into())),
    };
    if current_key(w, &identity.subject).await?.is_none() {
        return Ok(Err(Code::NotFound.into()));
    }
    keep_certificate(w, &identity, &certificate, None, now).await?;
    keep_member(w, kind, id, None, &certificate, now).await?;
    let (key, expires_at) = (certificate.key, certificate.not_after);
    w.append(&Event::CertificateRenewed {
        identity,
        key,
        expires_at,
    })
    .await?;
    Ok(Ok(()))
}

/// Says whether a certificate of `identity` with `key` has lost its trust.
pub(super) async fn is_revoked(
    w: &mut Write,
    identity: &Identity,
    key: &KeyHash,
) -> Result<bool, StoreError> {
    Ok(identity_is_revoked(w, identity).await? || key_is_revoked(w, key).await?)
}

pub(super) async fn identity_is_revoked(w: &mut Write, identity: &Identity) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM revoked_identities WHERE identity = ?")
        .bind(identity.to_string())
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(row.is_some())
}

async fn key_is_revoked(w: &mut Write, key: &KeyHash) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM revoked_keys WHERE key_hash = ?")
        .bind(&key.as_bytes()[..])
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(row.is_some())
}

async fn key_is_of_another(w: &mut Write, key: &KeyHash, identity: &Identity) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM certificates WHERE key_hash = ? AND identity <> ?")
        .bind(&key.as_bytes()[..])
        .bind(identity.to_string())
        .fetch_optional(&mut w.connection)
        .await?;
    Ok(row.is_some())
}

/// Returns the key of the newest certificate; `None` for who was never enrolled.
async fn current_key(w: &mut Write, subject: &Subject) -> Result<Option<KeyHash>, StoreError> {
    let statement = match subject {
        Subject::Device(_) => "SELECT key_hash FROM devices WHERE id = ?",
        Subject::Operator(_) => "SELECT key_hash FROM operators WHERE name = ?",
        Subject::Server(_) => return Ok(None),
    };
    sqlx::query(statement)
        .bind(id_of(subject))
        .fetch_optional(&mut w.connection)
        .await?
        .map(|row| key(&row, "key_hash"))
        .transpose()
}

/// Returns every key that the identity ever had, apart from the new one.
async fn other_keys(w: &mut Write, identity: &Identity, new: &KeyHash) -> Result<Vec<KeyHash>, StoreError> {
    sqlx::query(
        "SELECT DISTINCT key_hash FROM certificates WHERE identity = ?1 AND key_hash <> ?2
         AND key_hash NOT IN (SELECT key_hash FROM revoked_keys)",
    )
    .bind(identity.to_string())
    .bind(&new.as_bytes()[..])
    .fetch_all(&mut w.connection)
    .await?
    .iter()
    .map(|row| key(row, "key_hash"))
    .collect()
}

fn id_of(subject: &Subject) -> &str {
    match subject {
        Subject::Device(id) => id.as_str(),
        Subject::Operator(name) => name.as_str(),
        Subject::Server(name) => name.as_str(),
    }
}
