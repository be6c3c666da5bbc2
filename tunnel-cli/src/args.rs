//! The command line as it is written; what it means is with each command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tunnel_net::link::Try;
use tunnel_proto::names::GroupName;
use tunnel_proto::{DeviceId, OperatorName, ServiceName};

use crate::forward::Spec;
use crate::ttl::Span;

/// Reach devices behind NAT: each tunnel asked for, decided, recorded, and encrypted end to end
#[derive(Debug, Parser)]
#[command(
    name = "tunnel",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused, 4 not reachable, 5 deadline passed, \
6 needs an approval, 70 our fault, 130 interrupted; `tunnel ssh` and `tunnel scp` end with OpenSSH's own, and 255 for ours."
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Write results and errors as JSON: results to stdout, errors to stderr
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,
    /// State directory [env: TUNNEL_HOME; default: ~/.config/tunnel]
    #[arg(long, global = true, value_name = "DIR", display_order = 901)]
    pub home: Option<PathBuf>,
    /// Tell on stderr what happens meanwhile
    #[arg(long, global = true, display_order = 902)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in with a code from the fleet's owner
    Login(Login),
    /// Forget the login on this machine
    Logout,
    /// Show who is logged in, and whether the server answers
    Status,
    /// Measure the way to the server, and say what is wrong with it
    Doctor(Doctor),
    /// List devices, or show one
    Devices(Devices),
    /// Tell why devices were out of reach, as they saw it themselves
    Outages(Outages),
    /// Run ssh to a device
    #[command(
        override_usage = "tunnel ssh [OPTIONS] [SSH OPTIONS] [USER@]DEVICE [SSH OPTIONS] [--] [COMMAND...]"
    )]
    Ssh(Ssh),
    /// Run scp to or from a device
    #[command(override_usage = "tunnel scp [OPTIONS] [SCP OPTIONS] SOURCE... TARGET")]
    Scp(Ssh),
    /// Carry a device's service over standard input and output
    Connect(Connect),
    /// Print the stanza with which plain ssh, scp, sftp, rsync and Ansible reach DEVICE.tunnel
    SshConfig(SshConfig),
    /// Make a device's services reachable at local ports
    Forward(Forward),
    /// Run a batch of commands on devices: without a shell, each with its own end, and no other than what was approved
    #[command(
        override_usage = "tunnel run [OPTIONS] DEVICES --commands FILE\n       tunnel run [OPTIONS] DEVICES -- PROGRAM [ARGS]..."
    )]
    Run(Run),
    /// List tunnels
    Tunnels(Tunnels),
    /// List sessions that were: who used which service on which device, and how it ended
    Sessions(Sessions),
    /// Show one tunnel, or one device
    Describe(Describe),
    /// Close tunnels
    Close(Close),
    /// Give the legs of a live tunnel fresh keys: the old ones are worth nothing, sessions go on
    Rotate(Rotate),
    /// Cut tunnels of anybody: one, or all of a device, an operator or a group
    Cut(Cut),
    /// Ask others to agree to what policy permits only then
    Request(Request),
    /// List approvals: what you asked for, and what is yours to decide
    Approvals(Approvals),
    /// Agree to what somebody else asks for
    Approve(Approve),
    /// Say no to what somebody else asks for
    Deny(Deny),
    /// Take an approval back: what rests on it is cut
    Withdraw(Deny),
    /// Show, check, test or replace the policy
    #[command(subcommand)]
    Policy(Policy),
    /// Explain why a service may be used, or not
    Why(Why),
    /// Set, remove or list facts about a device
    #[command(subcommand)]
    Facts(Facts),
    /// Put devices and operators into groups, or take them out
    #[command(subcommand)]
    Group(Group),
    /// Read or verify the audit trail
    Audit(Audit),
    /// Show who is told of what is recorded, and what could not be told
    #[command(subcommand)]
    Notifications(Notifications),
    /// Make the keys of a fleet's owner, and sign with them what devices keep locked
    #[command(subcommand)]
    Lock(Lock),
    /// Make a one-time code for a device or an operator
    EnrolCode(EnrolCode),
    /// Take the trust in a device or an operator away, at once and for good
    Revoke(Revoke),
    /// Put a device into quarantine: what leads there is cut, and nothing opens until it is released
    Quarantine(Suspend<String>),
    /// Release a device from quarantine
    Release(Suspend<String>),
    /// Disable an operator: what it has is cut, and it is let in no more until it is enabled
    Disable(Suspend<OperatorName>),
    /// Enable an operator again
    Enable(Suspend<OperatorName>),
}

/// `tunnel login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The code, `tnl1_...`; `-` reads it from standard input
    pub code: String,
    /// The name to log in as, if the code leaves a choice
    #[arg(long)]
    pub name: Option<OperatorName>,
}

/// `tunnel doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Say too how the server knows this device's link
    pub device: Option<String>,
}

/// `tunnel devices`.
#[derive(Debug, Args)]
pub struct Devices {
    /// The device to show; all if absent
    pub device: Option<String>,
}

/// `tunnel outages`.
#[derive(Debug, Args)]
pub struct Outages {
    /// The device; all that you may see if absent
    pub device: Option<String>,
    /// Only those that ended within this time, as `7d`
    #[arg(long, value_name = "TIME")]
    pub last: Option<Span>,
}

/// What a new tunnel is asked for with.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// How long the tunnel may live, as `30m` [env: TUNNEL_TTL; default: the server's]
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<Span>,
    /// Why, for the record [env: TUNNEL_REASON]
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// In an emergency: without the approvals that policy asks for, for a short time. Needs a reason; it raises an alarm
    #[arg(long, requires = "reason")]
    pub break_glass: bool,
    /// Use only `udp` or only `websocket`, instead of what works best [env: TUNNEL_CARRIER; default: auto]
    #[arg(long, value_name = "CARRIER")]
    pub carrier: Option<Try>,
    /// Show a permit of the owner's keys, for services that the device keeps locked [env: TUNNEL_PERMIT]
    #[arg(long, value_name = "FILE")]
    pub permit: Option<PathBuf>,
}

/// `tunnel ssh` and `tunnel scp`.
#[derive(Debug, Args)]
pub struct Ssh {
    /// What the tunnel is asked for with.
    #[command(flatten)]
    pub ask: Ask,
    /// The service that is the device's SSH server
    #[arg(long, default_value = "ssh", value_name = "NAME")]
    pub service: ServiceName,
    /// What follows is read as OpenSSH reads it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// `tunnel connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// The device, with or without `.tunnel`
    pub device: String,
    /// The service
    pub service: ServiceName,
    /// What the tunnel is asked for with.
    #[command(flatten)]
    pub ask: Ask,
    /// The service is an SSH server: keep its host keys for ssh, and refuse if there are none
    #[arg(long)]
    pub host_keys: bool,
}

/// `tunnel ssh-config`.
#[derive(Debug, Args)]
pub struct SshConfig {
    /// The service that is the devices' SSH server
    #[arg(long, default_value = "ssh", value_name = "NAME")]
    pub service: ServiceName,
}

/// `tunnel forward`.
#[derive(Debug, Args)]
pub struct Forward {
    /// The device
    pub device: String,
    /// A service and where it is to be reached: `web`, `8080:web`, `[::1]:8080:web`
    #[arg(required = true, value_name = "[LOCAL:]SERVICE")]
    pub specs: Vec<Spec>,
    /// What the tunnel is asked for with.
    #[command(flatten)]
    pub ask: Ask,
    /// Allow local addresses that other machines can reach
    #[arg(long)]
    pub expose: bool,
}

/// `tunnel run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The device, or several joined by commas
    #[arg(value_name = "DEVICES")]
    pub devices: List<String>,
    /// The service that runs commands
    #[arg(long, default_value = "diag", value_name = "NAME")]
    pub service: ServiceName,
    /// Read the commands from a file, one on a line, split into words as by a shell that expands nothing, or as JSON lists
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    pub commands: Option<PathBuf>,
    /// On how many devices at once
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel: u16,
    /// What the tunnels are asked for with.
    #[command(flatten)]
    pub ask: Ask,
    /// One command instead of a file: a program by absolute path, and its arguments
    #[arg(
        last = true,
        required_unless_present = "commands",
        value_name = "PROGRAM [ARGS]"
    )]
    pub command: Vec<String>,
}

/// `tunnel tunnels`.
#[derive(Debug, Args)]
pub struct Tunnels {
    /// List ended ones too
    #[arg(long)]
    pub all: bool,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
}

/// `tunnel sessions`.
#[derive(Debug, Args)]
pub struct Sessions {
    /// Only those of an operator
    #[arg(long, value_name = "NAME")]
    pub operator: Option<OperatorName>,
    /// Only those on a device
    #[arg(long, value_name = "ID")]
    pub device: Option<DeviceId>,
    /// Only those of a tunnel: its id, or the first digits of it
    #[arg(long, value_name = "TUNNEL")]
    pub tunnel: Option<String>,
    /// Only those that ended within this time, as `12h`
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Show all that is known of each
    #[arg(long)]
    pub long: bool,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
}

/// `tunnel describe`.
#[derive(Debug, Args)]
pub struct Describe {
    /// The tunnel's id, or the first digits of it; or a device's id
    #[arg(value_name = "TUNNEL|DEVICE")]
    pub tunnel: String,
}

/// `tunnel close`.
#[derive(Debug, Args)]
pub struct Close {
    /// The tunnels' ids, or the first digits of each
    #[arg(required = true, value_name = "TUNNEL")]
    pub tunnels: Vec<String>,
}

/// `tunnel rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// The tunnel's id, or the first digits of it
    pub tunnel: String,
    /// Only the operator's leg
    #[arg(long, conflicts_with = "destination")]
    pub source: bool,
    /// Only the device's leg
    #[arg(long)]
    pub destination: bool,
}

/// `tunnel cut`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["tunnel", "device", "operator", "device_group", "operator_group"]))]
pub struct Cut {
    /// One tunnel: its id, or the first digits of it
    pub tunnel: Option<String>,
    /// All that lead to a device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// All of an operator
    #[arg(long, value_name = "NAME")]
    pub operator: Option<OperatorName>,
    /// All that lead to the devices of a group
    #[arg(long, value_name = "GROUP")]
    pub device_group: Option<GroupName>,
    /// All of the operators of a group
    #[arg(long, value_name = "GROUP")]
    pub operator_group: Option<GroupName>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `tunnel request`.
#[derive(Debug, Args)]
pub struct Request {
    /// The device, or several joined by commas
    #[arg(value_name = "DEVICES")]
    pub devices: List<String>,
    /// The service there, or several joined by commas
    #[arg(value_name = "SERVICES")]
    pub services: List<ServiceName>,
    /// Why, for those who decide and for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Only for the commands of a file, as `tunnel run` reads it: for nothing else of the service, and for no other batch
    #[arg(long, value_name = "FILE")]
    pub commands: Option<PathBuf>,
    /// For how long after it was given tunnels may live, as `2h` [default: the server's]
    #[arg(long = "for", value_name = "TIME")]
    pub window: Option<Span>,
    /// Wait for the decision: for this time, or as long as somebody can decide
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true)]
    pub wait: Option<Option<Span>>,
}

/// Several of a kind, joined by commas.
#[derive(Clone, Debug)]
pub struct List<T>(pub Vec<T>);

impl<T: std::str::FromStr> std::str::FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// `tunnel approvals`.
#[derive(Debug, Args)]
pub struct Approvals {
    /// The one to show: its id, or the first digits of it
    pub approval: Option<String>,
    /// List ended ones too
    #[arg(long, conflicts_with = "approval")]
    pub all: bool,
}

/// `tunnel approve`.
#[derive(Debug, Args)]
pub struct Approve {
    /// The approval's id, or the first digits of it
    pub approval: String,
}

/// `tunnel deny` and `tunnel withdraw`.
#[derive(Debug, Args)]
pub struct Deny {
    /// The approval's id, or the first digits of it
    pub approval: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `tunnel policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Print the policy in force, or one of before
    Show(PolicyShow),
    /// List the policies that are or were in force
    List,
    /// Check a policy without effect
    Check(PolicyFile),
    /// Show in which policies a file differs from what is in force
    Diff(PolicyDiff),
    /// Check a policy and put it in force
    Apply(PolicyApply),
    /// Put a policy of before in force again
    Rollback(PolicyRollback),
    /// Run the cases of a file against a policy, without a server
    Test(PolicyTest),
    /// Weigh a policy against the decisions of the past, and list who would lose or gain what
    Replay(PolicyReplay),
}

/// `tunnel policy show`.
#[derive(Debug, Args)]
pub struct PolicyShow {
    /// Its version; the one in force if absent
    pub version: Option<u64>,
}

/// `tunnel policy diff`.
#[derive(Debug, Args)]
pub struct PolicyDiff {
    /// The policies, in Cedar; `-` is standard input
    pub file: PathBuf,
    /// Compare with this version instead
    #[arg(long, value_name = "VERSION")]
    pub from: Option<u64>,
}

/// `tunnel policy apply`.
#[derive(Debug, Args)]
pub struct PolicyApply {
    /// The policies, in Cedar; `-` is standard input
    pub file: PathBuf,
    /// Only if this version is in force: the one that the file was made from
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<u64>,
}

/// `tunnel policy rollback`.
#[derive(Debug, Args)]
pub struct PolicyRollback {
    /// The version to go back to; the one before if absent
    pub version: Option<u64>,
}

/// `tunnel policy test`.
#[derive(Debug, Args)]
pub struct PolicyTest {
    /// The cases, in TOML; see `docs/policies.md`
    pub file: PathBuf,
    /// The policy to test, instead of the one that the file names
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// `tunnel policy replay`.
#[derive(Debug, Args)]
pub struct PolicyReplay {
    /// The policies to weigh, in Cedar; `-` is standard input
    pub file: PathBuf,
    /// How far to go back
    #[arg(long, default_value = "30d", value_name = "TIME")]
    pub since: Span,
}

/// A policy to read.
#[derive(Debug, Args)]
pub struct PolicyFile {
    /// The policies, in Cedar; `-` is standard input
    pub file: PathBuf,
}

/// `tunnel why`.
#[derive(Debug, Args)]
pub struct Why {
    /// The device
    pub device: String,
    /// The service
    pub service: ServiceName,
    /// Ask for another operator; for who may read policies or the audit trail
    #[arg(long, value_name = "NAME")]
    pub operator: Option<OperatorName>,
    /// Where that operator comes from [default: this address]
    #[arg(long, value_name = "IP", requires = "operator")]
    pub source: Option<std::net::IpAddr>,
    /// As if the tunnel was asked for with this reason
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// As if the tunnel was asked for with this lifetime
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<Span>,
    /// As if the tunnel was asked for one batch of commands, as `tunnel run` does
    #[arg(long)]
    pub batch: bool,
}

/// `tunnel facts`.
#[derive(Debug, Subcommand)]
pub enum Facts {
    /// Set facts that policies can ask for
    Set {
        /// The device
        device: String,
        /// Facts with their values, as `site=north`
        #[arg(required = true, value_name = "NAME=VALUE")]
        facts: Vec<String>,
    },
    /// Remove facts that were set
    Unset {
        /// The device
        device: String,
        /// The names of the facts
        #[arg(required = true, value_name = "NAME")]
        facts: Vec<String>,
    },
    /// List what was set, and apart from it what the device says of itself
    List {
        /// The device
        device: String,
    },
}

/// `tunnel group`.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// Put members into a group
    Add(GroupMembers),
    /// Take members out of a group
    Remove(GroupMembers),
    /// List groups with their members
    List {
        /// Only this group
        group: Option<GroupName>,
    },
}

/// A group and its members.
#[derive(Debug, Args)]
pub struct GroupMembers {
    /// The group
    pub group: GroupName,
    /// `device/ID` or `operator/NAME`
    #[arg(required = true, value_name = "MEMBER")]
    pub members: Vec<String>,
}

/// `tunnel notifications`.
#[derive(Debug, Subcommand)]
pub enum Notifications {
    /// List who is told and how far, and what was given up
    List,
    /// Send what was given up once more
    Retry(GivenUp),
    /// Forget what was given up
    Drop(GivenUp),
}

/// Notifications that were given up.
#[derive(Debug, Args)]
pub struct GivenUp {
    /// Who was to be told, by the name in the server's configuration
    pub target: String,
    /// Only that of the record of this number; the oldest hundred if absent
    #[arg(long, value_name = "NUMBER")]
    pub record: Option<u64>,
}

/// `tunnel audit`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Audit {
    /// What to do; lists if absent.
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// How to list.
    #[command(flatten)]
    pub list: AuditList,
}

/// The commands of `tunnel audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List records: the last ones, unless told otherwise
    List(AuditList),
    /// Write all records as lines of JSON, for another system or for a proof without the server
    Export(AuditExport),
    /// Print the signed head of the trail, to be kept where the server cannot reach it
    Head(AuditHead),
    /// Prove that no record was changed, removed or added
    Verify(AuditVerify),
}

/// Which audit records are wanted.
#[derive(Clone, Debug, Default, Args)]
pub struct AuditFilter {
    /// Only what an operator did or what befell it
    #[arg(long, value_name = "NAME")]
    pub operator: Option<OperatorName>,
    /// Only what is about a device
    #[arg(long, value_name = "ID")]
    pub device: Option<DeviceId>,
    /// Only what is about a tunnel: its id, or the first digits of it
    #[arg(long, value_name = "TUNNEL")]
    pub tunnel: Option<String>,
    /// Only of a kind, as `tunnel.opened`, or of a group of kinds, as `tunnel`
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub kind: Option<String>,
    /// Only what is not older, as `12h`
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Only what is older, as `1h`
    #[arg(long, value_name = "TIME")]
    pub until: Option<Span>,
}

/// Reads a kind of audit records.
fn kind(text: &str) -> Result<String, &'static str> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    match text.len() <= 64 && text.split('.').all(part) {
        true => Ok(text.to_owned()),
        false => Err("a kind is words of small letters with a dot between them, as `tunnel.opened`"),
    }
}

/// How to list audit records.
#[derive(Debug, Args)]
pub struct AuditList {
    /// Start after this record
    #[arg(long, value_name = "SEQ", conflicts_with = "last")]
    pub after: Option<u64>,
    /// Start this many records before the end [default: 50]
    #[arg(long, value_name = "N")]
    pub last: Option<u64>,
    /// Go on as records are written
    #[arg(long)]
    pub follow: bool,
    /// Which records.
    #[command(flatten)]
    pub filter: AuditFilter,
}

/// How to export audit records.
#[derive(Debug, Args)]
pub struct AuditExport {
    /// The records as they are, or as events of the Open Cybersecurity Schema Framework
    #[arg(long, value_enum, default_value = "json")]
    pub format: Format,
    /// Start after this record
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub after: u64,
    /// Go on as records are written
    #[arg(long)]
    pub follow: bool,
    /// Which records.
    #[command(flatten)]
    pub filter: AuditFilter,
}

/// How exported records are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// As they are.
    Json,
    /// As events of the Open Cybersecurity Schema Framework.
    Ocsf,
}

/// How to print the head of the audit chain.
#[derive(Debug, Args)]
pub struct AuditHead {
    /// Add it to a file too, as one line
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Go on: whenever the trail has grown, at most twice a minute
    #[arg(long)]
    pub follow: bool,
}

/// How to verify the audit chain.
#[derive(Debug, Args)]
pub struct AuditVerify {
    /// Verify what `tunnel audit export` wrote, instead of the server's chain; no server is needed
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Demand that the chain has the heads of this file, as `tunnel audit head --save` wrote them
    #[arg(long, value_name = "FILE")]
    pub pin: Option<PathBuf>,
}

/// Kinds of members that a code can make.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// An agent on a device.
    Device,
    /// A person or a script.
    Operator,
}

/// `tunnel enrol-code`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("who").required(true).multiple(true).args(["device", "operator", "group"]))]
pub struct EnrolCode {
    /// A device that the code may make; may be repeated
    #[arg(long, value_name = "ID", conflicts_with = "operator")]
    pub device: Vec<DeviceId>,
    /// An operator that the code may make; may be repeated
    #[arg(long, value_name = "NAME")]
    pub operator: Vec<OperatorName>,
    /// The group that newcomers are put into
    #[arg(long, value_name = "GROUP")]
    pub group: Option<GroupName>,
    /// What the code makes, where no id tells: `device` or `operator`
    #[arg(long, value_enum, default_value = "device", hide_possible_values = true)]
    #[arg(conflicts_with_all = ["device", "operator"])]
    pub kind: Kind,
    /// How often it can be used
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: u32,
    /// How long it can be used
    #[arg(long, default_value = "1d", value_name = "TIME")]
    pub ttl: Span,
    /// Let it replace an id that is enrolled already, whose certificates are then revoked
    #[arg(long)]
    pub replace: bool,
}

/// `tunnel revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// `device/ID`, `operator/NAME`, or a SPIFFE id
    pub identity: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `tunnel quarantine`, `tunnel release`, `tunnel disable` and `tunnel enable`.
#[derive(Debug, Args)]
pub struct Suspend<T: Clone + Send + Sync + std::str::FromStr<Err: std::error::Error + Send + Sync> + 'static>
{
    /// The device's id, or the operator's name
    pub name: T,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `tunnel lock`.
#[derive(Debug, Subcommand)]
pub enum Lock {
    /// Make the owner's keys, and the lock by which devices know them
    Init(LockInit),
    /// Write a request: locked services of a device, for this login and a time
    Request(LockRequest),
    /// Write a request: devices with the lock may change over to another root
    RequestRoot(LockRequestRoot),
    /// Sign a request; enough signatures make it a permit
    Sign(LockSign),
    /// Show what a permit states and who has signed it, or which keys a lock has
    Show(LockShow),
}

/// `tunnel lock init`.
#[derive(Debug, Args)]
pub struct LockInit {
    /// How many keys there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub keys: u8,
    /// How many of them have to sign
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub threshold: u8,
    /// The directory for `lock-1.key` and so on, and `fleet.lock`
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
}

/// When a permit holds.
#[derive(Debug, Args)]
pub struct When {
    /// How long it is to hold, `31d` at most
    #[arg(long = "for", default_value = "12h", value_name = "TIME")]
    pub lasts: Span,
    /// Let it begin so much later
    #[arg(long, value_name = "TIME")]
    pub after: Option<Span>,
}

/// `tunnel lock request`.
#[derive(Debug, Args)]
pub struct LockRequest {
    /// The device
    pub device: String,
    /// The services
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<ServiceName>,
    /// When it is to hold.
    #[command(flatten)]
    pub when: When,
    /// The file to write [default: DEVICE.permit]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `tunnel lock request-root`.
#[derive(Debug, Args)]
pub struct LockRequestRoot {
    /// The root certificate to come, in PEM
    pub root: PathBuf,
    /// When it is to hold.
    #[command(flatten)]
    pub when: When,
    /// The file to write [default: root.permit]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `tunnel lock sign`.
#[derive(Debug, Args)]
pub struct LockSign {
    /// The request, which the signatures are added to
    pub file: PathBuf,
    /// A key of the owner; may be repeated
    #[arg(long, required = true, value_name = "FILE")]
    pub key: Vec<PathBuf>,
}

/// `tunnel lock show`.
#[derive(Debug, Args)]
pub struct LockShow {
    /// A request, a permit, or a lock
    pub file: PathBuf,
    /// Say whether it opens this lock
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_ours_come_before_those_of_ssh() {
        let cli = Cli::try_parse_from(["tunnel", "ssh", "--reason", "x", "--json", "pump-17"]).unwrap();
        let Command::Ssh(ssh) = cli.command else {
            panic!("not ssh")
        };
        assert_eq!(
            (ssh.ask.reason.as_deref(), cli.global.json, ssh.args.len()),
            (Some("x"), true, 1)
        );
    }
}
