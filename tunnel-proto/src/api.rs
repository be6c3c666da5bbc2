//! JSON bodies of the HTTP API. Requests refuse fields that they do not know; answers may gain fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::batch::BatchHash;
use crate::code::Code;
use crate::ids::{ApprovalId, CircuitId, TunnelId};

/// The error body of every refused request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The stable code, as `E_POLICY_DENY`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub code: Code,
    /// Why, as half a sentence.
    pub why: String,
    /// What to do next, as half a sentence.
    pub next: String,
    /// The particulars, where there are any that the caller may know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// `POST /v1/enrol`: turns a one-time code and a certificate request into a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolRequest {
    /// The secret of the code, 64 hexadecimal digits.
    pub secret: String,
    /// The id that is asked for; the code may leave a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The PKCS#10 request, PEM.
    pub csr: String,
}

/// Answer to [`EnrolRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolAnswer {
    /// The SPIFFE id that the certificate names.
    pub identity: String,
    /// The chain, leaf first, PEM.
    pub chain: String,
    /// The root certificate, PEM; its fingerprint is the code's.
    pub root: String,
    /// When the certificate ends, in seconds since 1970.
    pub expires_at: u64,
    /// UDP port of the relay.
    pub udp_port: u16,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The server's node name.
    pub node: String,
    /// The server's version.
    pub version: String,
    /// Who the server takes the caller for.
    pub identity: String,
    /// The server's clock, in seconds since 1970.
    pub clock: u64,
    /// Seconds since the server's start.
    pub uptime_secs: u64,
    /// The policy revision in force.
    pub policy_revision: u64,
    /// How many cuts no device has confirmed in time, for who may see the tunnels of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_cuts: Option<u64>,
    /// How many tunnels of the last day were opened without the approvals that policy asks for, for who may see the tunnels
    /// of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken_glass: Option<u64>,
}

/// A device, as `GET /v1/devices` lists it. Only what policy lets the caller see is listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Device {
    /// The device id.
    pub id: String,
    /// The groups that it is in.
    pub groups: Vec<String>,
    /// Whether a control link is up, and what is proven about it.
    pub link: Option<LinkState>,
    /// The services that the agent offers, as it reported last.
    pub services: Vec<String>,
    /// Whether the owner lets anybody in, as the agent reported last.
    pub access: bool,
    /// The agent's version, as it reported last.
    pub version: Option<String>,
    /// Host keys of its SSH server, as it reported last, each as `<type> <base64>`.
    pub ssh_host_keys: Vec<String>,
    /// When it was linked last, in seconds since 1970.
    pub last_seen: Option<u64>,
    /// When its certificate ends, in seconds since 1970.
    pub cert_expires_at: Option<u64>,
    /// Whether it is in quarantine: it gets no tunnel.
    #[serde(default)]
    pub quarantined: bool,
    /// How many cuts it has not confirmed in time. The relay has stopped; what the device does is not known.
    #[serde(default)]
    pub unconfirmed_cuts: u64,
}

/// What the server knows of a device's control link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LinkState {
    /// `udp` or `websocket`.
    pub carrier: String,
    /// When the link came up, in seconds since 1970.
    pub since: u64,
    /// Milliseconds since the last proven round trip; `null` before the first.
    pub proven_millis_ago: Option<u64>,
    /// The round trip that was proven last, in milliseconds.
    pub rtt_millis: Option<u64>,
    /// How far the agent's clock is from the server's, in seconds; ahead is positive.
    pub clock_skew_secs: i64,
    /// `true` when the next proof is overdue.
    pub overdue: bool,
    /// Within how many seconds the link proves itself again: what its keepalive has learnt of the NAT on the way.
    #[serde(default)]
    pub proof_within_secs: u64,
    /// What the link has cost so far, both ways with headers, in bytes, as the agent counts it.
    #[serde(default)]
    pub cost_bytes: Option<u64>,
    /// What a day would cost at the rate since its first keepalive, in bytes.
    #[serde(default)]
    pub cost_bytes_per_day: Option<u64>,
}

/// A time in which a device had no link, as the device tells it and `GET /v1/outages` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outage {
    /// The device.
    pub device: String,
    /// When it began, in seconds since 1970, by the device's clock.
    pub from: u64,
    /// When it ended.
    pub until: u64,
    /// How many times the device tried to get a link.
    pub attempts: u32,
    /// How many times the agent was started in the meantime.
    pub starts: u32,
    /// What the device saw, in the order in which it saw it first.
    pub causes: Vec<OutageCause>,
}

/// What a device saw in an outage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutageCause {
    /// The cause, as `udp-silent`.
    pub cause: String,
    /// How often it was seen.
    pub count: u32,
    /// When it was seen first, in seconds since 1970.
    pub first: u64,
    /// When it was seen last.
    pub last: u64,
    /// The particulars, in the device's words.
    pub detail: Option<String>,
}

/// `POST /v1/tunnels`: asks for a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenTunnel {
    /// The device.
    pub device: String,
    /// The services, at least one.
    pub services: Vec<String>,
    /// Lifetime in seconds; the server's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Why, for the record and for policies that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A permit of the owner's keys, base64url, for services that the device keeps locked. The server hands it on unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<String>,
    /// Whether it is an emergency, in which the approvals are done without that policy asks for. Needs a reason and the
    /// right to `break-glass`.
    #[serde(default, skip_serializing_if = "is_no")]
    pub break_glass: bool,
    /// The only batch of commands that it is to be for, 64 hexadecimal digits: the device runs no other, and gives nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub batch: Option<BatchHash>,
}

/// Answer to [`OpenTunnel`]: what the CLI needs to attach.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenedTunnel {
    /// The tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub tunnel: TunnelId,
    /// The signed grant, base64url.
    pub grant: String,
    /// The signed source token, base64url; redeemed once by `POST /v1/tunnels/{id}/attach`.
    pub token: String,
    /// The SPIFFE id that the device must prove.
    pub device_identity: String,
    /// Host keys of the device's SSH server, each as `<type> <base64>`.
    pub ssh_host_keys: Vec<String>,
    /// When the tunnel was opened, in seconds since 1970; 0 from a server that does not say so.
    #[serde(default)]
    pub opened_at: u64,
    /// When the tunnel ends, in seconds since 1970.
    pub expires_at: u64,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// What policy lets it use.
    #[serde(default)]
    pub limits: Limits,
}

/// What a tunnel may use at most, as policy says; a limit that is absent is the server's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// How long it may live, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_secs: Option<u64>,
    /// Sessions at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// Tunnels that its operator may have to its device at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<u32>,
    /// Bytes both ways together, as the relay counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes in a second both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_sec: Option<u64>,
}

/// `POST /v1/tunnels/{id}/attach`: redeems the source token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttachTunnel {
    /// The token, base64url.
    pub token: String,
}

/// Answer to [`AttachTunnel`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttachedTunnel {
    /// The circuit on the relay.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub circuit: CircuitId,
    /// The key of the leg, 64 hexadecimal digits.
    pub leg_key: String,
    /// UDP port of the relay.
    pub udp_port: u16,
}

/// A tunnel, as `GET /v1/tunnels` and `GET /v1/tunnels/{id}` show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tunnel {
    /// The tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: TunnelId,
    /// Who opened it.
    pub operator: String,
    /// Where it leads.
    pub device: String,
    /// What it may be used for.
    pub services: Vec<String>,
    /// Why it was opened.
    pub reason: Option<String>,
    /// `opening`, `open` or `ended`.
    pub state: String,
    /// When it was opened, in seconds since 1970.
    pub opened_at: u64,
    /// When it ends at the latest, in seconds since 1970.
    pub expires_at: u64,
    /// When it ended, in seconds since 1970.
    pub ended_at: Option<u64>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// The policy revision that decided.
    pub policy_revision: u64,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// What policy lets it use.
    #[serde(default)]
    pub limits: Limits,
    /// Whether it was opened without the approvals that policy asks for.
    #[serde(default)]
    pub break_glass: bool,
    /// The approval that it rests on.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub approval: Option<ApprovalId>,
    /// Datagrams and bytes that the relay forwarded.
    pub traffic: Option<Traffic>,
    /// SHA-256 of the signed grant, 64 hexadecimal digits; older tunnels do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// Who has approved it, if that was needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// Who ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// The address that the request came from.
    #[serde(default)]
    pub source: String,
    /// The only batch of commands that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub batch: Option<BatchHash>,
}

/// Answer of `GET /v1/tunnels/{id}/end`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TunnelEnd {
    /// The tunnel as it is.
    #[serde(flatten)]
    pub tunnel: Tunnel,
    /// A fresh source token, base64url, for the operator whose leg has to bind with a new key: to be redeemed as the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<String>,
}

/// `POST /v1/tunnels/{id}/rotate`: fresh keys for the legs of a live tunnel. Both if none is named.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotateTunnel {
    /// The operator's leg.
    #[serde(default)]
    pub source: bool,
    /// The device's leg.
    #[serde(default)]
    pub destination: bool,
}

/// Answer to [`RotateTunnel`]. The old keys bind nothing any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotatedTunnel {
    /// The tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub tunnel: TunnelId,
    /// Its legs that have new keys.
    pub legs: Vec<RotatedLeg>,
}

/// A leg whose key was rotated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotatedLeg {
    /// `source` or `destination`.
    pub leg: String,
    /// Microseconds until the end had bound with the new key; `null` if it has not yet.
    pub bound_micros: Option<u64>,
}

/// What the relay forwarded for a circuit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// Bytes from the operator to the device, as UDP payload.
    pub bytes_in: u64,
    /// Bytes from the device to the operator.
    pub bytes_out: u64,
    /// Datagrams from the operator to the device.
    pub datagrams_in: u64,
    /// Datagrams from the device to the operator.
    pub datagrams_out: u64,
    /// Datagrams that were dropped for want of room, address or allowance.
    pub dropped: u64,
    /// Carrier of the operator's leg, once it is bound.
    pub source_carrier: Option<String>,
    /// Carrier of the device's leg, once it is bound.
    pub destination_carrier: Option<String>,
    /// Where the legs were, one after the other: the first place of each, and the last ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<LegPath>,
}

/// A place of a leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LegPath {
    /// `source` or `destination`.
    pub leg: String,
    /// `udp` or `websocket`.
    pub carrier: String,
    /// The address and port that the relay saw.
    pub address: String,
}

/// A session that has ended or was refused, as `GET /v1/sessions` returns it: all that the audit trail says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// Number of its audit record.
    pub seq: u64,
    /// The tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub tunnel: TunnelId,
    /// Who used it.
    pub operator: Option<String>,
    /// On which device.
    pub device: Option<String>,
    /// The service that was asked for.
    pub service: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
    /// When it started, in seconds since 1970.
    pub started_at: Option<u64>,
    /// When its end was recorded, in seconds since 1970.
    pub ended_at: u64,
    /// Milliseconds from its start to its end.
    pub millis: u64,
    /// Bytes from the operator to the service.
    pub bytes_in: u64,
    /// Bytes from the service to the operator.
    pub bytes_out: u64,
    /// Who ended it: `both`, `operator`, `service` or `tunnel`.
    pub ended_by: Option<String>,
    /// Why the tunnel ended, if that ended the session.
    pub cause: Option<String>,
    /// Where the legs of its tunnel were.
    pub paths: Vec<LegPath>,
    /// What it rested on.
    pub opening: Option<Opening>,
    /// Ends of sessions that its device gave up for want of room before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<EndsDropped>,
}

/// How many ends of sessions a device gave up for want of room, before the server had said that it has them. Those that it
/// had told are among them, since they may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndsDropped {
    /// Of sessions that took place.
    pub sessions: u64,
    /// Of sessions that were refused.
    pub refusals: u64,
}

/// What a tunnel rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Opening {
    /// SHA-256 of the operator's public key.
    pub holder_key: String,
    /// What it may be used for.
    pub services: Vec<String>,
    /// SHA-256 of the signed grant, 64 hexadecimal digits.
    pub grant: Option<String>,
    /// The policy revision that decided.
    pub policy_revision: u64,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// Why it was opened.
    pub reason: Option<String>,
    /// Who has approved it, if that was needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// The approval that it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// Whether it was opened without the approvals that policy asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub break_glass: bool,
    /// The only batch of commands that it was for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub batch: Option<BatchHash>,
    /// The address that the request came from.
    pub source: String,
    /// When it was opened, in seconds since 1970.
    pub opened_at: u64,
    /// When it was to end at the latest, in seconds since 1970.
    pub expires_at: u64,
}

/// `POST /v1/enrol-codes`: makes a one-time code.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MakeEnrolCode {
    /// `device` or `operator`.
    pub kind: String,
    /// The ids that it may make; any of the group if empty.
    #[serde(default)]
    pub ids: Vec<String>,
    /// The group that newcomers are put into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How often it can be used; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Lifetime in seconds; one day if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Whether it may replace an enrolled id, whose certificates are then revoked.
    #[serde(default)]
    pub replace: bool,
}

/// Answer to [`MakeEnrolCode`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeEnrolCode {
    /// The code, `tnl1_…`: shown once, stored nowhere.
    pub code: String,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
}

/// `POST /v1/revocations`: takes an identity's trust away, at once and for good.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revoke {
    /// The SPIFFE id.
    pub identity: String,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to [`Revoke`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revoked {
    /// How many live tunnels were cut.
    pub tunnels_cut: u64,
}

/// `POST /v1/cuts`: cuts one tunnel, or all of a device, an operator or a group. One of the targets is named.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CutTunnels {
    /// One tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// All that lead to a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// All of an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// All that lead to the devices of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_group: Option<String>,
    /// All of the operators of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_group: Option<String>,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to [`CutTunnels`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CutReport {
    /// What was alive and is cut.
    pub cuts: Vec<CutTunnel>,
}

/// A tunnel that was cut by hand. Times count from when the right to cut was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CutTunnel {
    /// The tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub tunnel: TunnelId,
    /// Where it led.
    pub device: String,
    /// Whose it was.
    pub operator: String,
    /// What it was for.
    pub services: Vec<String>,
    /// Microseconds until the relay had stopped forwarding.
    pub stopped_micros: u64,
    /// Microseconds until the device had confirmed; `null` if it has not. That becomes an alarm.
    pub confirmed_micros: Option<u64>,
}

/// `POST /v1/approvals`: asks others to agree to tunnels that policy permits only then.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AskApproval {
    /// The devices, at least one.
    pub devices: Vec<String>,
    /// The services on each of them, at least one.
    pub services: Vec<String>,
    /// Why, for those who decide and for the record.
    pub reason: String,
    /// For how long after it was given tunnels may live, in seconds; the server's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_secs: Option<u64>,
    /// The commands that may be run, and nothing else: each the words of one, with the program's absolute path first. Only for
    /// one service, which runs commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<Vec<String>>>,
}

/// `POST /v1/approvals/{id}/approve`, `.../deny` and `.../withdraw`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DecideApproval {
    /// Why, for the one who asked and for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An approval, as `GET /v1/approvals` shows it to who asked and to those who may decide.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approval {
    /// The approval.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: ApprovalId,
    /// Who asked, and nobody else may use it.
    pub requester: String,
    /// The devices.
    pub devices: Vec<String>,
    /// The services on each of them.
    pub services: Vec<String>,
    /// Why it was asked for.
    pub reason: String,
    /// For how long after it was given it counts, in seconds.
    pub window_secs: u64,
    /// `pending`, `approved`, `denied`, `withdrawn` or `expired`.
    pub state: String,
    /// How many have to agree.
    pub needed: u32,
    /// Who has agreed.
    pub approvers: Vec<String>,
    /// When it was asked for, in seconds since 1970.
    pub asked_at: u64,
    /// When it ends, in seconds since 1970: nobody has decided by then, or the window is over.
    pub expires_at: u64,
    /// Who denied or withdrew it.
    pub ended_by: Option<String>,
    /// Why.
    pub end_reason: Option<String>,
    /// Whether the caller may approve it.
    pub may_approve: bool,
    /// The commands that it is for, each word by word; for nothing else then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<Vec<String>>>,
    /// The hash of them, 64 hexadecimal digits, by which a tunnel is bound to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub batch: Option<BatchHash>,
}

/// Answer of `POST /v1/approvals/{id}/withdraw`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WithdrawnApproval {
    /// The approval as it is.
    #[serde(flatten)]
    pub approval: Approval,
    /// How many live tunnels rested on it, and were cut.
    pub tunnels_cut: u64,
}

/// `POST /v1/suspensions` and `POST /v1/suspensions/lift`: quarantine of a device, or the disabling of an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Suspend {
    /// The SPIFFE id of a device or an operator.
    pub identity: String,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer of `POST /v1/suspensions/lift`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lifted {
    /// Whether there was a suspension.
    pub lifted: bool,
}

/// `GET /v1/suspensions`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Suspensions {
    /// Who is suspended, by identity: devices in quarantine, operators who are disabled.
    pub members: Vec<SuspendedMember>,
}

/// A device in quarantine, or an operator who is disabled.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SuspendedMember {
    /// The SPIFFE id.
    pub identity: String,
    /// Why.
    pub reason: Option<String>,
    /// By whom.
    pub by: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// `POST /v1/policy/check` and `PUT /v1/policy`: a policy set, in Cedar.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyText {
    /// The policies.
    pub text: String,
    /// For `PUT`: the revision that must be in force, so that nobody's change is lost. Any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
}

/// A policy that is or was in force, as `GET /v1/policy/revisions` lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyRevision {
    /// The revision.
    pub revision: u64,
    /// When it came into force, in seconds since 1970.
    pub at: u64,
    /// Who put it into force.
    pub by: String,
    /// How long its text is, in bytes.
    pub bytes: u64,
    /// The text, for one revision that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// `POST /v1/why`: asks why a service may be used, or not. Nothing is opened.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AskWhy {
    /// The device.
    pub device: String,
    /// The service.
    pub service: String,
    /// The operator; the caller if absent. Another one is for who may read policies or the audit chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The address that another operator comes from; the caller's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The reason that the tunnel would be asked for with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its lifetime in seconds; the server's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Whether it would be for one batch of commands alone.
    #[serde(default, skip_serializing_if = "is_no")]
    pub batch: bool,
}

/// Answer to [`AskWhy`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Why {
    /// Whom it is about.
    pub operator: String,
    /// The device.
    pub device: String,
    /// The service.
    pub service: String,
    /// `allow`, `deny`, or `approval` if others have to agree first.
    pub outcome: String,
    /// The policy revision that was asked.
    pub policy_revision: u64,
    /// The policies that decided; of a denial only for who may read policies or the audit chain.
    pub policies: Vec<String>,
    /// The limits, if it is allowed.
    pub limits: Limits,
    /// What the operator could add so that it would be allowed, all of it together; empty if that is not known.
    pub missing: Vec<String>,
    /// The operator's groups.
    pub groups: Vec<String>,
    /// The policies that decided, for who may read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<WhyRule>,
    /// Of a denial without one: the policies that would permit it under other conditions, for who may read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<WhyRule>,
    /// The facts that those policies speak of, for who may read them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
    /// What the fleet's own authoriser says of it, if the fleet has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authoriser: Option<WhyAuthoriser>,
}

/// What the fleet's own authoriser says, as [`Why`] shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyAuthoriser {
    /// Whether it was asked: about what policy permits, for who may read policies or the audit chain.
    pub asked: bool,
    /// Its answer, or why there is none, in the words of the audit chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The facts that it said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// A policy, as [`Why`] shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyRule {
    /// Its name.
    pub name: String,
    /// Whether it permits; it forbids otherwise.
    pub permits: bool,
    /// Its text, in Cedar.
    pub text: String,
}

/// `PATCH /v1/devices/{id}/facts`: sets and removes facts about a device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChangeFacts {
    /// The facts to set, with their values.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// The facts to remove.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// What is known of a device and what it says of itself, apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceFacts {
    /// The facts that somebody has set.
    pub asserted: BTreeMap<String, AssertedFact>,
    /// The facts that the device claims.
    pub reported: BTreeMap<String, String>,
    /// When it claimed them last, in seconds since 1970.
    pub reported_at: Option<u64>,
    /// The groups that the device is in by what it claims.
    pub reported_groups: Vec<String>,
}

/// A fact that somebody has set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AssertedFact {
    /// The value.
    pub value: String,
    /// When it was set, in seconds since 1970.
    pub at: u64,
    /// Who set it.
    pub by: String,
}

/// A member of a group: `device/pump-17` or `operator/ana`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupMember {
    /// The group.
    pub group: String,
    /// The member.
    pub member: String,
}

/// Answer to what changes facts and groups.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Changed {
    /// Whether anything was different before.
    pub changed: bool,
    /// How many live tunnels were cut by it.
    pub tunnels_cut: u64,
}

/// Answer of `POST /v1/policy/check`, `PUT /v1/policy` and `GET /v1/policy`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyState {
    /// The revision: of this text if it is in force, of the one in force otherwise.
    pub revision: u64,
    /// How many policies the text has.
    pub policies: u64,
    /// What is wrong, with line; empty when the text is good.
    pub errors: Vec<String>,
    /// What is odd, and allowed.
    pub warnings: Vec<String>,
    /// The text in force, for `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How many live tunnels the new policy cut, for `PUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels_cut: Option<u64>,
}

/// One record of the audit chain, as `GET /v1/audit` returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// Counts up from 1 without a gap.
    pub seq: u64,
    /// Milliseconds since 1970. The order is that of `seq`, not of time.
    pub time_millis: u64,
    /// The kind of event, as `tunnel.opened`.
    pub kind: String,
    /// The event, as JSON text: exactly the bytes that were hashed.
    pub body: String,
    /// SHA-256 of the record before, 64 hexadecimal digits; zeros for the first.
    pub prev: String,
    /// SHA-256 over prev, seq, time, kind and body, 64 hexadecimal digits.
    pub hash: String,
}

/// How far notifications are, as `GET /v1/notifications` returns it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Notifications {
    /// Who is told.
    pub targets: Vec<NotifyTarget>,
    /// What was given up, oldest first for each target.
    pub dead: Vec<DeadLetter>,
}

/// Somebody who is told what was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NotifyTarget {
    /// The name in the server's configuration.
    pub name: String,
    /// The last record that it was told; the ones after it may not concern it.
    pub told: u64,
    /// The last record that there is.
    pub head: u64,
}

/// A notification that was given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetter {
    /// Who was to be told.
    pub target: String,
    /// What.
    pub record: AuditRecord,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last attempt failed.
    pub error: String,
    /// When it was given up, in seconds since 1970.
    pub given_up_at: u64,
}

/// What is to become of notifications that were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Settlement {
    /// They are sent once more, and kept if that fails.
    Retry,
    /// They are forgotten.
    Drop,
}

/// Settles notifications that were given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SettleNotifications {
    /// Whose.
    pub target: String,
    /// Only that of this record; the oldest hundred if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// How.
    pub how: Settlement,
}

/// What became of notifications that were given up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettledNotifications {
    /// How many were sent or dropped.
    pub settled: u64,
    /// Why the next one was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A page of the audit chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// The records, in order.
    pub records: Vec<AuditRecord>,
    /// A signed checkpoint of the chain's head, base64url COSE_Sign1.
    pub checkpoint: Option<String>,
    /// The key that signs checkpoints, 64 hexadecimal digits.
    pub checkpoint_key: String,
    /// Number of the last record that was looked at for this page, whether it fitted or not: where the next page begins.
    #[serde(default)]
    pub through: u64,
    /// A signed statement of which records were dropped for their age, base64url COSE_Sign1; absent if none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_no(value: &bool) -> bool {
    !*value
}

/// Returns the bytes over which a record is hashed: `prev` is 32 bytes, and each text has its length before it.
pub fn audit_hash(prev: &[u8; 32], seq: u64, time_millis: u64, kind: &str, body: &str) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(b"tunnel audit v1");
    context.update(prev);
    context.update(&seq.to_be_bytes());
    context.update(&time_millis.to_be_bytes());
    for text in [kind, body] {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
