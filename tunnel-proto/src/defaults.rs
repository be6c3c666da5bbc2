//! Every default and bound that two programs share, each with its reason.

use std::time::Duration;

/// How far the clocks of a signer and of a verifier may differ (THREATS part 5).
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// How long an access token can be redeemed: long enough for a slow link, short enough to be worthless when found.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// How long a tunnel lives when nothing else is asked for.
pub const TUNNEL_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a tunnel lives at most.
pub const TUNNEL_LIFETIME_MAX: Duration = Duration::from_secs(12 * 3600);

/// How long a tunnel may be without a session. A session that is quiet is still a session.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(15 * 60);

/// Sessions at once in one tunnel: a browser's and an Ansible run's worth. Each costs the device a socket.
pub const SESSIONS_PER_TUNNEL: u32 = 512;

/// Facts of each kind that a device may have: more than rules ask for, and less than what makes a record large.
pub const MAX_FACTS: usize = 32;

/// For how long after it was given an approval counts when nothing else is asked for.
pub const APPROVAL_WINDOW: Duration = Duration::from_secs(3600);

/// For how long after it was given an approval can count: a week's work on a site.
pub const APPROVAL_WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a tunnel lives at most that was opened without the approvals that policy asks for.
pub const BREAK_GLASS_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Life of a device's certificate, renewed after two thirds.
pub const DEVICE_CERT_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Life of an operator's certificate: a working day.
pub const OPERATOR_CERT_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Life of an enrolment code when nothing else is asked for.
pub const ENROL_CODE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// First interval of the control link's keepalive: below the 30 s that the worst NATs keep a binding.
pub const KEEPALIVE_FIRST: Duration = Duration::from_secs(25);

/// Longest interval of the control link's keepalive: what an idle day may cost bounds it from below, and how soon a
/// dead link is found out from above.
pub const KEEPALIVE_MAX: Duration = Duration::from_secs(240);

/// How much later than asked the second answer to a keepalive may come.
pub const KEEPALIVE_ECHO_LATE: Duration = Duration::from_secs(5);

/// How long a control link may be without any packet. More than [`KEEPALIVE_MAX`] and its repetitions.
pub const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long an agent waits for the answer to a keepalive before it takes the link for dead.
pub const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// First pause before a reconnect; doubled each time, with full jitter.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// Longest pause before a reconnect.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Deadline of one attempt to connect (THREATS part 5).
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long UDP has before WebSocket is tried beside it: more than most round trips, less than a person notices.
pub const UDP_HEAD_START: Duration = Duration::from_millis(250);

/// How long an agent has to answer an offer. The CLI waits for it.
pub const OFFER_DEADLINE: Duration = Duration::from_secs(10);

/// How long both ends have to bind their legs after a circuit was opened.
pub const BIND_DEADLINE: Duration = Duration::from_secs(75);

/// How long the device tries to reach a service's target.
pub const TARGET_DEADLINE: Duration = Duration::from_secs(10);

/// Largest control message, in bytes.
pub const MAX_MESSAGE: usize = 60_000;

/// Largest UDP datagram that a relay forwards, in bytes: the largest that IP can carry.
pub const MAX_DATAGRAM: usize = 65_507;

/// Largest WebSocket message, in bytes (THREATS part 5).
pub const MAX_WS_MESSAGE: usize = 64 * 1024;

/// ALPN of the control link.
pub const ALPN_LINK: &[u8] = b"tunnel-link/1";

/// ALPN of the end-to-end connection.
pub const ALPN_TUNNEL: &[u8] = b"tunnel/1";

/// TLS server name of the control link and the API. Servers are known by their SPIFFE id, not by a DNS name.
pub const SERVER_NAME: &str = "server.tunnel.internal";

/// TLS server name of a device in a tunnel.
pub const DEVICE_NAME: &str = "device.tunnel.internal";

/// Path of the WebSocket carrier.
pub const CARRIER_PATH: &str = "/v1/carrier";

/// Sub-protocol of the WebSocket carrier.
pub const CARRIER_PROTOCOL: &str = "tunnel-carrier.1";
