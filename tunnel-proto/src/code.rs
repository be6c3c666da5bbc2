//! The codes of everything that is refused: stable for scripts, with a sentence and a next step for people.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal, $why:literal, $next:literal, $exit:ident;)*) => {
        /// Why something was refused or has ended.
        ///
        /// The number travels in CBOR and in datagrams, the text in JSON; neither ever changes its meaning.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Code {
            /// Every code, for the table in the documentation.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// Returns the code of a number; a number of a newer version reads as [`Code::Internal`].
            pub const fn from_number(number: u64) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    _ => Self::Internal,
                }
            }

            /// Returns the stable text, as `E_POLICY_DENY`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns why this happens, as half a sentence.
            pub const fn why(self) -> &'static str {
                match self { $(Self::$variant => $why,)* }
            }

            /// Returns what to do next, as half a sentence.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$variant => $next,)* }
            }

            /// Returns the exit code of a program that ends because of this.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit,)* }
            }

            /// Says whether a tunnel that ends with this code was cut: trust in it ended, and nobody was done with it.
            pub const fn is_cut(self) -> bool {
                matches!(
                    self,
                    Self::PolicyChanged
                        | Self::Revoked
                        | Self::ByteLimit
                        | Self::Quarantined
                        | Self::OperatorDisabled
                        | Self::Cut
                        | Self::ApprovalWithdrawn
                        | Self::AuditUnavailable
                )
            }

            /// Reads the stable text; one of a newer version reads as [`Code::Internal`].
            pub fn from_text(text: &str) -> Self {
                match text { $($text => Self::$variant,)* _ => Self::Internal }
            }
        }
    };
}

codes! {
    /// A defect of ours, or a code that this version does not know.
    Internal = 1, "E_INTERNAL", "the server met a fault of its own", "try again, and report it if it stays", Fault;
    /// The request is not of the documented form.
    BadRequest = 2, "E_BAD_REQUEST", "the request is not of the documented form", "correct the request", Usage;
    /// The peer broke the protocol.
    Protocol = 3, "E_PROTOCOL", "the other side sent something that the protocol does not allow", "check that both sides are current releases", Fault;
    /// There is no such thing, or the caller may not know of it.
    NotFound = 4, "E_NOT_FOUND", "there is no such thing, or you may not see it", "check the name with `tunnel devices` or `tunnel tunnels`", Denied;
    /// A quota or bound is used up.
    Limit = 5, "E_LIMIT", "a limit is reached", "close what is no longer needed, or try again later", Failed;
    /// The peer sheds load.
    Busy = 6, "E_BUSY", "the other side is too busy for new work", "try again in a few seconds", Failed;
    /// A part that the answer needs does not work at the moment.
    Unavailable = 7, "E_UNAVAILABLE", "the control plane cannot answer at the moment", "try again in a few seconds", Unreachable;
    /// The decision could not be recorded, so it was not made.
    AuditUnavailable = 8, "E_AUDIT_UNAVAILABLE", "the server cannot record what happens, so nothing may be opened", "tell the server's owner: its disk may be full", Unreachable;
    /// The caller has no certificate, or not one that this request needs.
    Unauthenticated = 9, "E_UNAUTHENTICATED", "no valid certificate was shown", "run `tunnel login CODE` with a fresh code", Denied;
    /// The message is larger than its bound.
    TooLarge = 10, "E_TOO_LARGE", "the message is larger than allowed", "send less at once", Usage;
    /// A time limit passed.
    Deadline = 11, "E_DEADLINE", "the answer did not come in time", "try again; `tunnel status` shows whether the server answers", Deadline;
    /// The name is not of the documented form.
    BadName = 12, "E_BAD_NAME", "the name has characters that names cannot have", "use the name that `tunnel devices` shows", Usage;

    /// No policy permits it, or one forbids it.
    PolicyDeny = 20, "E_POLICY_DENY", "no policy permits this", "ask the fleet's owner for the right", Denied;
    /// The tunnel was cut because the policy no longer allows it.
    PolicyChanged = 21, "E_POLICY_CHANGED", "the policy no longer allows this tunnel", "ask the fleet's owner for the right", Denied;
    /// The identity was revoked.
    Revoked = 22, "E_REVOKED", "the certificate or its holder was revoked", "ask the fleet's owner for a new enrolment code", Denied;
    /// The tunnel's time is over.
    TunnelExpired = 23, "E_TUNNEL_EXPIRED", "the tunnel's time is over", "open a new one", Denied;
    /// The tunnel had no session for its idle time.
    TunnelIdle = 24, "E_TUNNEL_IDLE", "the tunnel had no session for a while", "open a new one", Failed;
    /// Somebody was done with the tunnel.
    TunnelClosed = 25, "E_TUNNEL_CLOSED", "the tunnel was closed", "open a new one", Failed;
    /// The tunnel used up the bytes that it may carry.
    ByteLimit = 26, "E_BYTE_LIMIT", "the tunnel used up the bytes that policy allows it", "open a new one, or ask for a higher limit", Denied;
    /// Another policy came into force than the one that was edited or decided by.
    PolicyStale = 27, "E_POLICY_STALE", "another policy came into force meanwhile", "look at it with `tunnel policy diff`, and try again", Failed;
    /// Policy permits it only if others agree.
    ApprovalRequired = 28, "E_APPROVAL_REQUIRED", "policy permits this only if somebody approves it", "ask for an approval with `tunnel request DEVICE SERVICE --reason TEXT`", Approval;

    /// The agent is not linked.
    DeviceOffline = 30, "E_DEVICE_OFFLINE", "the device is not linked to the server", "`tunnel devices` shows when it was last there", Unreachable;
    /// The agent did not answer the offer.
    DeviceSilent = 31, "E_DEVICE_SILENT", "the device did not answer in time", "try again; `tunnel devices` shows its last proven round trip", Unreachable;
    /// The relay does not answer over any carrier.
    RelayUnreachable = 32, "E_RELAY_UNREACHABLE", "the relay answers neither over UDP nor over WebSocket", "check this machine's network, then `tunnel status`", Unreachable;
    /// The server does not answer.
    ServerUnreachable = 33, "E_SERVER_UNREACHABLE", "the server does not answer", "check this machine's network and the server's address", Unreachable;
    /// The end-to-end connection was lost.
    TunnelLost = 34, "E_TUNNEL_LOST", "the other end of the tunnel is no longer heard", "open a new one", Unreachable;
    /// The device's owner wants no tunnel to go on unwatched, and the server is silent.
    ServerLost = 35, "E_SERVER_LOST", "the device did not hear the server for as long as its owner allows", "open a new one when the server answers again", Unreachable;

    /// The agent offers no such service.
    ServiceUnknown = 40, "E_SERVICE_UNKNOWN", "the device offers no service of this name", "`tunnel devices` lists its services", Failed;
    /// The device's own policy refuses.
    LocalPolicy = 41, "E_LOCAL_POLICY", "the device's own policy does not allow this", "ask the owner of the device", Denied;
    /// The owner switched all access off.
    AccessOff = 42, "E_ACCESS_OFF", "the device's owner switched access off", "ask the owner of the device", Denied;
    /// The service's target refused the connection.
    TargetRefused = 43, "E_TARGET_REFUSED", "the service does not accept connections on the device", "check that the service runs on the device", Failed;
    /// The service's target did not answer.
    TargetTimeout = 44, "E_TARGET_TIMEOUT", "the service did not answer on the device", "check that the service runs on the device", Failed;
    /// The service's target cannot be reached for another cause.
    TargetUnreachable = 45, "E_TARGET_UNREACHABLE", "the service cannot be reached on the device", "check the service's target in the agent's configuration", Failed;

    /// The token or grant is not of the documented form.
    TokenMalformed = 50, "E_TOKEN_MALFORMED", "the token is damaged", "open a new tunnel", Failed;
    /// The token's algorithm or key id is not the expected one.
    TokenAlg = 51, "E_TOKEN_ALG", "the token is signed in a way that is not accepted", "open a new tunnel", Failed;
    /// The signature is wrong.
    TokenSig = 52, "E_TOKEN_SIG", "the token's signature is wrong", "open a new tunnel", Failed;
    /// The token or grant has expired.
    TokenExpired = 53, "E_TOKEN_EXPIRED", "the token has expired", "open a new tunnel", Failed;
    /// The token or grant is not valid yet.
    TokenNotYet = 54, "E_TOKEN_NOT_YET", "the token is not valid yet", "check the clocks of both sides", Failed;
    /// The token was issued for another relay or device.
    TokenAudience = 55, "E_TOKEN_AUDIENCE", "the token was issued for another relay or device", "open a new tunnel", Failed;
    /// The token belongs to somebody else.
    TokenHolder = 56, "E_TOKEN_HOLDER", "the token belongs to another identity", "open a tunnel of your own", Denied;
    /// The token does not cover what was asked.
    TokenScope = 57, "E_TOKEN_SCOPE", "the token does not cover this", "open a tunnel for what you need", Denied;
    /// The token was used before.
    TokenReplay = 58, "E_TOKEN_REPLAY", "the token was used before", "open a new tunnel", Failed;

    /// The enrolment code is not known, has expired, or is used up.
    EnrolTokenUnknown = 60, "E_ENROL_TOKEN_UNKNOWN", "the code is unknown, has expired or was used", "ask for a new code", Denied;
    /// The certificate request asks for more than the code gives.
    EnrolCsr = 61, "E_ENROL_CSR", "the certificate request asks for something that the code does not give", "ask for a code that names this id", Denied;
    /// The id is taken.
    EnrolTaken = 62, "E_ENROL_TAKEN", "the id is taken by another key", "use another id, or ask for a code that replaces", Denied;

    /// The certificate has expired.
    CertExpired = 70, "E_CERT_EXPIRED", "the certificate has expired", "enrol or log in again", Denied;
    /// The certificate is not valid yet.
    CertNotYet = 71, "E_CERT_NOT_YET", "the certificate is not valid yet", "check the clock of this machine", Denied;
    /// The certificate is not of this fleet.
    CertUnknownCa = 72, "E_CERT_UNKNOWN_CA", "the certificate is not of this fleet", "check that this is the right server", Denied;
    /// The certificate is of a kind that may not do this.
    CertUsage = 73, "E_CERT_USAGE", "a certificate of this kind may not do this", "use a certificate of the right kind", Denied;
    /// The certificate names somebody else, or nobody.
    CertName = 74, "E_CERT_NAME", "the certificate does not name the expected identity", "do not go on: somebody else answers", Denied;
    /// The chain from the certificate to the root is broken.
    CertChain = 75, "E_CERT_CHAIN", "the certificate's chain is not valid", "enrol or log in again", Denied;

    /// The device is in quarantine.
    Quarantined = 80, "E_QUARANTINED", "the device is in quarantine", "ask the fleet's owner to release it", Denied;
    /// The operator is disabled.
    OperatorDisabled = 81, "E_OPERATOR_DISABLED", "this operator is disabled", "ask the fleet's owner to enable it", Denied;
    /// Somebody with the right to do so cut the tunnel.
    Cut = 82, "E_CUT", "the tunnel was cut", "ask the fleet's owner before you open a new one", Denied;

    /// The owner of the device locked the service, and there is no permit.
    LockRequired = 90, "E_LOCK_REQUIRED", "the device's owner locked this, and no permit was shown", "make a request with `tunnel lock request`, have the owner sign it, and show it with `--permit`", Denied;
    /// The permit is damaged, or too few of the lock's keys have signed it.
    LockPermit = 91, "E_LOCK_PERMIT", "the permit is damaged, or too few keys of the owner have signed it", "`tunnel lock show` tells who has; have the others sign too", Denied;
    /// The permit is for something else.
    LockScope = 92, "E_LOCK_SCOPE", "the permit is for another operator, login, device or service", "make a request for this with `tunnel lock request`", Denied;
    /// The permit's window is over, or has not begun.
    LockTime = 93, "E_LOCK_TIME", "the permit does not hold at this time", "`tunnel lock show` tells when it holds; else make a new request", Denied;

    /// The fleet's own authoriser forbids the tunnel.
    AuthoriserDeny = 100, "E_AUTHORISER_DENY", "the fleet's own authoriser forbids this", "ask the fleet's owner; the audit trail has the authoriser's words", Denied;
    /// The fleet's own authoriser gave no answer that can be used.
    Authoriser = 101, "E_AUTHORISER", "the fleet's own authoriser gave no answer in time, or none that can be used", "try again; tell the fleet's owner if it stays", Unreachable;
    /// Who decides about an approval has said no.
    ApprovalDenied = 110, "E_APPROVAL_DENIED", "the approval was denied", "ask who denied it, as `tunnel approvals --all` tells", Denied;
    /// An approval was taken back, and with it what rests on it.
    ApprovalWithdrawn = 111, "E_APPROVAL_WITHDRAWN", "the approval was withdrawn", "ask for a new one with `tunnel request`", Denied;
    /// Nobody has decided in time, or the window of an approval is over.
    ApprovalExpired = 112, "E_APPROVAL_EXPIRED", "the time of the approval is over", "ask for a new one with `tunnel request`", Denied;
    /// Somebody wants to decide about an own request.
    SelfApproval = 113, "E_SELF_APPROVAL", "nobody approves what they ask for themselves", "ask somebody else who may approve it", Denied;
    /// An approval is asked for where none is needed.
    ApprovalNeedless = 114, "E_APPROVAL_NEEDLESS", "policy permits this without an approval", "open the tunnel as it is", Failed;
    /// A person at the device said no.
    ConsentDenied = 115, "E_CONSENT_DENIED", "somebody at the device said no", "talk to the people on site before you ask again", Denied;
    /// Nobody at the device has answered.
    ConsentTimeout = 116, "E_CONSENT_TIMEOUT", "nobody at the device allowed it in time", "have somebody there run `tunnel-agent allow`, and ask again", Deadline;
    /// The owner lets nobody in at this time.
    OutsideWindow = 117, "E_OUTSIDE_WINDOW", "it is outside of the device's maintenance windows", "ask the owner of the device when it may be", Denied;
    /// A person at the device ended the tunnel.
    EndedOnSite = 118, "E_ENDED_ON_SITE", "somebody at the device ended it", "talk to the people on site before you open a new one", Denied;

    /// The tunnel is for one batch of commands, and this is another, or no batch at all.
    BatchDenied = 120, "E_BATCH_DENIED", "the tunnel is for one batch of commands and for nothing else", "run exactly the batch that was asked for, or ask for this one with `tunnel request --commands FILE`", Denied;
    /// A command took longer than the device's owner lets it.
    CommandTimeout = 121, "E_COMMAND_TIMEOUT", "the command took longer than the device allows, and was ended", "let it do less, or ask the owner of the device for a longer `timeout_secs`", Deadline;
    /// A command wrote more than the device's owner lets it.
    CommandOutput = 122, "E_COMMAND_OUTPUT", "the command wrote more than the device allows, and was ended", "let it write less, or ask the owner of the device for a larger `max_output_bytes`", Failed;
    /// A command could not be started.
    CommandStart = 123, "E_COMMAND_START", "the command could not be started on the device", "check that the program is there and that the agent's user may run it", Failed;
    /// A command ended, and not well.
    CommandFailed = 124, "E_COMMAND_FAILED", "the command did not end with exit code 0", "see what it wrote", Failed;
}

/// How a program ends. The table stands in `docs/exit-codes.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The remote end or the operation failed.
    Failed = 1,
    /// Wrong use or configuration.
    Usage = 2,
    /// Refused by policy or for want of trust.
    Denied = 3,
    /// Device, relay or server not reachable.
    Unreachable = 4,
    /// A deadline passed.
    Deadline = 5,
    /// Refused until somebody approves it.
    Approval = 6,
    /// A fault of ours.
    Fault = 70,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<C> minicbor::Encode<C> for Code {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u64(*self as u64)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Code {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.u64().map(Self::from_number)
    }
}

#[cfg(feature = "api")]
impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

#[cfg(feature = "api")]
impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(&String::deserialize(d)?))
    }
}

/// A code with the particulars of one case.
#[derive(Clone, PartialEq, Eq, Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Refusal {
    /// The stable code.
    #[n(0)]
    pub code: Code,
    /// What the code does not tell, if its receiver may know it. Text of another party: escape before printing.
    #[n(1)]
    pub detail: Option<String>,
}

impl Refusal {
    /// Makes a refusal that says more than its code does.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: Some(detail.into()),
        }
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self { code, detail: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.why())?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_read_back_and_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code as u64), code);
            assert_eq!(Code::from_text(code.as_str()), code);
            assert!(seen.insert(code.as_str()), "{code} twice");
        }
        assert_eq!(Code::from_number(9999), Code::Internal);
        assert_eq!(Code::from_text("E_OF_THE_FUTURE"), Code::Internal);
    }
}
