//! Settings of QUIC endpoints and connections. The bounds are those of THREATS part 5.

use std::sync::Arc;
use std::time::Duration;

use quinn::{
    ConnectionIdGenerator as _, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
};
use tunnel_proto::defaults;

use crate::congestion::Controllers;
use crate::wake::Wake;

/// Bytes of a connection id: 96 random bits, so that ids do not collide and cannot be guessed.
const CONNECTION_ID_BYTES: usize = 12;

/// How long an end-to-end connection outlives the right to it: what ends the tunnel is to be heard, not to be guessed.
/// Silence alone ends none before: a laptop sleeps, a server is down, a device is out of reach. Ends that are gone for good
/// are found by the relay.
const BEYOND_THE_RIGHT: Duration = Duration::from_secs(60);

/// How often an end-to-end connection shows that it is alive, while it is open at the operator's end.
pub const TUNNEL_KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a connection that measures outlives silence.
const PROBE_SILENCE: Duration = Duration::from_secs(10);

/// What a session may hold at the device, in bytes, when its service does not read.
const AGENT_STREAM_WINDOW: u32 = 1024 * 1024;

/// What a session may hold at the operator, in bytes: 160 Mbit/s at a round trip of 100 ms. quinn needs up to three times
/// as much memory while it puts the pieces together, and a stream may cost 10 MB.
const CLI_STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// How many sessions of a tunnel may be full before they hold up the others: what all of a connection's streams hold
/// together is bounded too.
const SLOW_STREAMS: u32 = 64;

/// Returns the settings that every endpoint of ours has.
///
/// # Security
/// A greased fixed bit would let a QUIC packet pass for a control datagram of the relay, so it is off.
pub fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    config.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::new(CONNECTION_ID_BYTES)));
    config
}

/// Marks the first packets of an end-to-end connection by the length of their ids: a relay that has not bound the leg yet
/// does not take them for those of a control link, whose ids are longer, and does not answer in the device's place.
pub(crate) fn mark_as_tunnel(config: &mut quinn::ClientConfig) {
    config.initial_dst_cid_provider(Arc::new(|| {
        quinn_proto::RandomConnectionIdGenerator::new(CONNECTION_ID_BYTES).generate_cid()
    }));
}

/// Returns the settings of a control link, for both sides: one stream, small windows, silent unless spoken to.
pub fn link_transport() -> Arc<TransportConfig> {
    let mut config = base(defaults::LINK_IDLE_TIMEOUT);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .receive_window(VarInt::from_u32(128 * 1024))
        .send_window(128 * 1024)
        .mtu_discovery_config(None);
    Arc::new(config)
}

/// Returns the settings of a connection that measures: those of a control link, and it finds the path's MTU.
pub fn probe_transport() -> Arc<TransportConfig> {
    let mut config = base(PROBE_SILENCE);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .receive_window(VarInt::from_u32(128 * 1024))
        .send_window(128 * 1024);
    Arc::new(config)
}

/// Returns the settings of the end-to-end connection at the device, whose right ends in `left`. Of the two ends' patience
/// the shorter one counts, which is this.
pub fn agent_transport(sessions: u32, left: Duration, wake: &Wake) -> Arc<TransportConfig> {
    let mut config = base(left + BEYOND_THE_RIGHT);
    config.congestion_controller_factory(wake.before(Arc::new(Controllers { wake: wake.clone() })));
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(sessions))
        .stream_receive_window(VarInt::from_u32(AGENT_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(AGENT_STREAM_WINDOW * SLOW_STREAMS))
        .send_window(4 * 1024 * 1024);
    Arc::new(config)
}

/// Returns the settings of the end-to-end connection at the operator.
pub fn cli_transport(wake: &Wake) -> Arc<TransportConfig> {
    let mut config = base(defaults::TUNNEL_LIFETIME_MAX + BEYOND_THE_RIGHT);
    config.congestion_controller_factory(wake.before(Arc::new(Controllers { wake: wake.clone() })));
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CLI_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CLI_STREAM_WINDOW * SLOW_STREAMS))
        .send_window(4 * 1024 * 1024)
        .keep_alive_interval(Some(TUNNEL_KEEPALIVE));
    Arc::new(config)
}

/// What all connections share: no unidirectional streams, no datagrams, packets that fit every path at first.
fn base(silence: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    let silence = IdleTimeout::try_from(silence).ok();
    debug_assert!(silence.is_some(), "a day fits an idle timeout");
    config
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .initial_mtu(1200)
        .min_mtu(1200)
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .max_idle_timeout(silence);
    config
}
