//! Permits: what the owner's keys sign, and who has signed it so far. A CWT (RFC 8392) in COSE_Sign.

use std::str::FromStr;
use std::time::Duration;

use super::{LockError, of};
use crate::code::Code;
use crate::cose::{self, Purpose, Signed, SigningKey, VerifyingKey};
use crate::defaults::CLOCK_TOLERANCE;
use crate::grant::{Claims, Grant, MAX_SERVICES};
use crate::keys::KeyHash;
use crate::names::{DeviceId, Identity, OperatorName, ServiceName, Subject, TrustDomain};
use crate::time::UnixTime;
use crate::word;

/// Longest time that a permit holds: what was signed and forgotten ends by itself.
pub const MAX_WINDOW: Duration = Duration::from_secs(31 * 24 * 3600);

/// What a permit as text starts with; the digit is the version.
const PREFIX: &str = "tnlpermit1_";

/// Names a permit, and makes two that ask for the same different.
pub type PermitNonce = [u8; 16];

/// A statement with the signatures that it has so far; with none it is a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permit {
    statement: Statement,
    signed: Signed,
}

/// What is asked of the owner, and stated by the owner's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// An operator may use locked services.
    Access(Access),
    /// Devices may change over to another root.
    NewRoot(NewRoot),
}

/// One operator, with one key, may use these services of one device for a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// Who.
    pub operator: OperatorName,
    /// The key that the operator proves to the device.
    pub holder_key: KeyHash,
    /// Where.
    pub device: DeviceId,
    /// What: at least one, at most [`MAX_SERVICES`].
    pub services: Vec<ServiceName>,
    /// When.
    pub window: Window,
    /// Which permit this is.
    pub nonce: PermitNonce,
}

/// A device with this lock may be enrolled under this root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRoot {
    /// SHA-256 of the root certificate, DER.
    pub root: [u8; 32],
    /// When.
    pub window: Window,
    /// Which permit this is.
    pub nonce: PermitNonce,
}

/// From when until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The first moment.
    pub from: UnixTime,
    /// The first moment after it.
    pub until: UnixTime,
}

impl Window {
    /// Says whether a time lies within. The start gives way to clocks that differ a little, the end does not.
    ///
    /// # Errors
    /// Returns [`Code::LockTime`] if not.
    pub fn holds(&self, now: UnixTime) -> Result<(), Code> {
        if now < self.until && now.after(CLOCK_TOLERANCE) >= self.from {
            Ok(())
        } else {
            Err(Code::LockTime)
        }
    }

    fn of(claims: &Claims) -> Option<Self> {
        let window = Self {
            from: claims.not_before?,
            until: claims.expires_at?,
        };
        (window.from < window.until && window.until.since(window.from) <= MAX_WINDOW).then_some(window)
    }
}

impl Access {
    /// Says whether the permit is for who has a grant, and for these services of it.
    ///
    /// # Errors
    /// Returns [`Code::LockScope`] if not.
    pub fn covers(&self, grant: &Grant, locked: &[&ServiceName]) -> Result<(), Code> {
        let same = self.trust_domain == grant.trust_domain
            && self.operator == grant.operator
            && self.holder_key == grant.holder_key
            && self.device == grant.device;
        if same && locked.iter().all(|service| self.services.contains(service)) {
            Ok(())
        } else {
            Err(Code::LockScope)
        }
    }

    fn claims(&self) -> Claims {
        Claims {
            subject: Some(Identity::operator(&self.trust_domain, &self.operator).to_string()),
            audience: Some(Identity::device(&self.trust_domain, &self.device).to_string()),
            holder_key: Some(self.holder_key),
            services: Some(self.services.clone()),
            ..common(self.window, self.nonce)
        }
    }

    fn of(claims: Claims) -> Option<Self> {
        let window = Window::of(&claims)?;
        let subject: Identity = claims.subject?.parse().ok()?;
        let audience: Identity = claims.audience?.parse().ok()?;
        let (Subject::Operator(operator), Subject::Device(device)) = (subject.subject, audience.subject)
        else {
            return None;
        };
        let services = claims.services?;
        if subject.trust_domain != audience.trust_domain
            || services.is_empty()
            || services.len() > MAX_SERVICES
        {
            return None;
        }
        Some(Self {
            trust_domain: subject.trust_domain,
            operator,
            holder_key: claims.holder_key?,
            device,
            services,
            window,
            nonce: claims.id?.try_into().ok()?,
        })
    }
}

impl NewRoot {
    fn claims(&self) -> Claims {
        Claims {
            root: Some(self.root),
            ..common(self.window, self.nonce)
        }
    }

    fn of(claims: Claims) -> Option<Self> {
        Some(Self {
            window: Window::of(&claims)?,
            root: claims.root?,
            nonce: claims.id?.try_into().ok()?,
        })
    }
}

fn common(window: Window, nonce: PermitNonce) -> Claims {
    Claims {
        not_before: Some(window.from),
        expires_at: Some(window.until),
        id: Some(nonce.to_vec()),
        ..Claims::default()
    }
}

impl Permit {
    /// Makes a request: a permit that nobody has signed.
    pub fn request(statement: Statement) -> Self {
        let signed = match &statement {
            Statement::Access(access) => Signed::new(Purpose::Permit, access.claims().encode()),
            Statement::NewRoot(root) => Signed::new(Purpose::NewRoot, root.claims().encode()),
        };
        Self { statement, signed }
    }

    /// Returns what is stated.
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Returns what is stated, if it is about access.
    pub const fn access(&self) -> Option<&Access> {
        match &self.statement {
            Statement::Access(access) => Some(access),
            Statement::NewRoot(_) => None,
        }
    }

    /// Signs with one more key; says whether there was room.
    #[must_use]
    pub fn sign(&mut self, key: &SigningKey) -> bool {
        self.signed.sign(key)
    }

    /// Says whether a key has signed.
    #[must_use]
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        self.signed.is_signed_by(key)
    }

    /// Returns how many signatures there are, of whatever keys.
    pub const fn signatures(&self) -> usize {
        self.signed.signatures()
    }

    /// Returns when it holds.
    pub const fn window(&self) -> Window {
        match &self.statement {
            Statement::Access(access) => access.window,
            Statement::NewRoot(root) => root.window,
        }
    }

    /// Writes the permit as it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.signed.encode()
    }

    /// Reads a permit. That it is signed is for [`super::Lock::verify`].
    ///
    /// # Errors
    /// Returns [`Code::LockPermit`] for what is none.
    pub fn from_bytes(message: &[u8]) -> Result<Self, Code> {
        let read = |purpose| Signed::decode(purpose, message).ok();
        let (signed, is_root) = match read(Purpose::Permit) {
            Some(signed) => (signed, false),
            None => (read(Purpose::NewRoot).ok_or(Code::LockPermit)?, true),
        };
        let claims = Claims::decode(signed.payload()).ok_or(Code::LockPermit)?;
        let statement = if is_root {
            NewRoot::of(claims).map(Statement::NewRoot)
        } else {
            Access::of(claims).map(Statement::Access)
        };
        let statement = statement.ok_or(Code::LockPermit)?;
        Ok(Self { statement, signed })
    }

    /// Writes the permit as one word.
    pub fn to_text(&self) -> String {
        word::write(PREFIX, &self.to_bytes())
    }
}

impl FromStr for Permit {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        let bytes = word::read(PREFIX, text, cose::MAX_BYTES).map_err(|error| of(error, PREFIX))?;
        Self::from_bytes(&bytes).map_err(|_| LockError::Damaged)
    }
}
