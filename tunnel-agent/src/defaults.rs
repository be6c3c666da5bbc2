//! Every default and bound of the agent alone, each with its reason.

use std::time::Duration;

use crate::outgoing::Bounds;

/// The configuration file, when neither flag nor variable names another.
pub const CONFIG_FILE: &str = "/etc/tunnel-agent/agent.toml";

/// Where keys, certificates and the owner's switch are kept.
pub const STATE_DIR: &str = "/var/lib/tunnel-agent";

/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "TUNNEL_AGENT_CONFIG";

/// Names the state directory, over the configuration file.
pub const STATE_VARIABLE: &str = "TUNNEL_AGENT_STATE";

/// Sets how much is logged: `error`, `warn`, `info`, `debug` or `trace`.
pub const LOG_VARIABLE: &str = "TUNNEL_AGENT_LOG";

/// Largest configuration or key file that is read, in bytes: many times what one needs, and no harm to a small device.
pub const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Sessions at once, of all tunnels: each costs two file descriptors and the windows of a stream.
pub const MAX_SESSIONS: u32 = 512;

/// Sessions at once of a service that runs commands: each may be a program at work.
pub const MAX_COMMAND_SESSIONS: u32 = 8;

/// How long a command may take: what looks at a device is done by then, or hangs.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How much a command may write, in bytes: some thousand lines of a log.
pub const COMMAND_OUTPUT: u64 = 1024 * 1024;

/// The most that an owner can let a command write, in bytes: whoever runs it keeps it in memory.
pub const COMMAND_OUTPUT_MAX: u32 = 16 * 1024 * 1024;

/// Tunnels at once: each costs one QUIC connection and one socket.
pub const MAX_TUNNELS: u32 = 32;

/// Tunnel ids that are remembered so that none is accepted twice: more than a day's worth for a busy device, in 100 KiB.
pub const MAX_REMEMBERED: usize = 4096;

/// Where OpenSSH keeps the public halves of its host keys.
pub const HOST_KEY_DIR: &str = "/etc/ssh";

/// Host keys that are reported at most: OpenSSH has three kinds in use.
pub const MAX_HOST_KEYS: usize = 8;

/// Longest host key line that is reported, in bytes: an RSA key of 16,384 bits fits.
pub const MAX_HOST_KEY_BYTES: usize = 3000;

/// How long an operator has, on a fresh stream, to name the service that it wants.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a handshake in a tunnel may take. It is of an operator whose grant was accepted, so it may take as long as a line
/// needs that somebody floods with three times its rate.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long the server may take to welcome an agent.
pub const WELCOME_DEADLINE: Duration = Duration::from_secs(10);

/// How long the end of a tunnel may take to reach the other end: some round trips of a slow line.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How long all tunnels together have to end when the agent stops.
pub const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// Deadline of an enrolment from first to last byte: the server writes to its disk in it.
pub const ENROL_DEADLINE: Duration = Duration::from_secs(30);

/// Largest answer to an enrolment, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What waits for the server: some minutes of a busy device without a link, or what a long and thick line has under way.
/// Ends of tunnels are kept before ends of sessions, of which each takes some hundred bytes.
pub const WAITING: Bounds = Bounds {
    count: 1024,
    bytes: 256 * 1024,
    // A third of what a server takes from one device before it has done any of it.
    unconfirmed: 128,
};

/// Messages between the parts of the agent that may wait: enough for a burst of ends, and the sender waits beyond.
pub const QUEUE: usize = 64;

/// How long a person on site has to say yes, where a service asks for that: to hear of it and to walk over.
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest such time: less than a tunnel may be without a session.
pub const CONSENT_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// How often the owner's switch is looked at beside the kernel's notice of a change, which may get lost.
pub const ACCESS_POLL: Duration = Duration::from_secs(60);

/// How often it is looked at where the kernel gives no notice.
pub const ACCESS_POLL_ALONE: Duration = Duration::from_secs(1);

/// How long after a refused renewal the next one is tried.
pub const RENEW_RETRY: Duration = Duration::from_secs(3600);

/// By how much the time of the last proof may grow before it is written down again: spares flash memory.
pub const FLOOR_STEP: Duration = Duration::from_secs(3600);

/// How far the clock may be off before `check` says so: beyond it, grants would be refused by a server (60 s).
pub const SKEW_WARNING: Duration = Duration::from_secs(60);

/// How long before its end a certificate is reported by `check`: renewal should have happened 20 days before.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest pause that a server can ask for at the end of a link: one that is wrong must not put a device out of reach.
pub const GOODBYE_MAX: Duration = Duration::from_secs(600);

/// How long a new program has to be welcomed by the server before the one that worked goes on: a slow line needs a tenth.
pub const TRIAL: Duration = Duration::from_secs(60);

/// Sets [`TRIAL`], in seconds, for lines that are slower still.
pub const TRIAL_VARIABLE: &str = "TUNNEL_AGENT_TRIAL_SECS";

/// What [`TRIAL`] may be set to, in seconds.
pub const TRIALS_IN_SECS: std::ops::RangeInclusive<u64> = 10..=3600;

/// How much longer than a trial a worker leaves the link to a successor: it comes back by itself only when the supervisor,
/// which would tell it to, is gone.
pub const WAIT_BEYOND_TRIAL: Duration = Duration::from_secs(30);

/// How long a new program must have been linked until it is believed to work: one that falls over its first messages does
/// so within this.
pub const PROBATION: Duration = Duration::from_secs(5);

/// How long the program that worked goes on until the new one is tried again.
pub const BETWEEN_TRIALS: Duration = Duration::from_secs(5);

/// Failed trials, each while the server was in reach of the program that worked, after which a new one is given up.
pub const TRIALS: u32 = 2;

/// How long workers of before have to say how they are when a supervisor takes them over.
pub const GATHER: Duration = Duration::from_secs(2);

/// Workers with tunnels that drain at once; beyond it, the oldest ends its tunnels. Each has about a megabyte of its own, and a
/// place in the service manager's store, which has room for two more: the one that works, and its successor.
pub const MAX_DRAINING: usize = 6;

/// Pauses before a worker that ended is started again: the first, and the longest.
pub const RESTART_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How long a worker must have lived for the next pause to be the shortest again.
pub const LIVED: Duration = Duration::from_secs(60);

/// Programs that are remembered as given up.
pub const MAX_GIVEN_UP: usize = 8;

/// Shortest silence of the server that an owner can let end tunnels: three questions and their answers on a slow line.
pub const MIN_SERVER_SILENCE: Duration = Duration::from_secs(5);
