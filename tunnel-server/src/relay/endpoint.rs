//! The relay's own QUIC endpoint, for control links: its socket over both carriers, and its connection ids.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, EndpointConfig, UdpPoller};
use quinn_proto::InvalidCid;
use quinn_udp::{RecvMeta, Transmit};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use tunnel_proto::keys::Secret;

use super::shared::Shared;
use super::train::Train;
use super::udp::Target;

/// Random bytes of a connection id. Each packet of an idle link carries one, so it is short.
const RANDOM: usize = 8;

/// Bytes of a connection id that show that it is one of ours. Who guesses them gets a stateless reset, no more.
const TAG: usize = 3;

/// Least time between two stateless resets. They are smaller than what they answer and go only to who knows a connection
/// id of ours, so that they may tell a whole fleet after a restart, within seconds, that its links are gone.
const RESET_PAUSE: Duration = Duration::from_micros(200);

/// The one QUIC version that links speak (RFC 9000).
const VERSION: u32 = 1;

/// Length of the destination ids of packets with a long header that can be meant for the endpoint: that of its own ids, or
/// that which quinn gives to the first packet of a link. Tunnels have ids of 12 bytes: the first packet of one that comes
/// before its leg is bound is dropped, and sent again by its sender, where a handshake of the endpoint would break it off.
const LONG_IDS: [u8; 2] = [(RANDOM + TAG) as u8, 20];

/// Least size of a packet with a short header that can be meant for the endpoint (RFC 9000 section 10.3).
const LEAST_SHORT: usize = 21;

/// Says whether a datagram can be of a link. Everything else gets silence, a version negotiation least of all: it would be
/// larger than what asked for it.
pub(super) fn is_plausible(datagram: &[u8]) -> bool {
    let Some((first, rest)) = datagram.split_first() else {
        return false;
    };
    if first & 0x80 == 0 {
        return datagram.len() >= LEAST_SHORT;
    }
    rest.first_chunk().is_some_and(|&[version @ .., id]: &[u8; 5]| {
        u32::from_be_bytes(version) == VERSION && LONG_IDS.contains(&id)
    })
}

/// Returns the settings of the relay's endpoint.
///
/// Its connection ids carry a tag under a key of the relay, and its reset tokens come from that key too: after a restart an
/// old link is told at once that it is gone, and a packet of anything but a link gets silence.
pub(super) fn config(secret: &Secret) -> EndpointConfig {
    let ids = hmac::Key::new(hmac::HMAC_SHA256, derive(secret, b"connection ids").expose());
    let resets = hmac::Key::new(hmac::HMAC_SHA256, derive(secret, b"stateless resets").expose());
    let mut config = tunnel_net::quic::endpoint_config();
    config
        .cid_generator(move || {
            Box::new(Ids {
                key: ids.clone(),
                random: SystemRandom::new(),
            })
        })
        .reset_key(Arc::new(resets))
        .min_reset_interval(RESET_PAUSE)
        .supported_versions(vec![VERSION])
        .grease_quic_bit(false);
    config
}

fn derive(secret: &Secret, what: &[u8]) -> Secret {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tunnel relay endpoint v1");
    let mut bytes = [0; 32];
    let filled = salt
        .extract(secret.expose())
        .expand(&[what], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes));
    debug_assert!(filled.is_ok(), "32 bytes are one block of HKDF-SHA256");
    Secret::new(bytes)
}

/// Makes connection ids and knows them again, over restarts too.
#[derive(Debug)]
struct Ids {
    key: hmac::Key,
    random: SystemRandom,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; RANDOM + TAG];
        // Without random bytes the id is made from what is there: it collides, and the handshake fails, no more.
        let _ = self.random.fill(&mut bytes[..RANDOM]);
        let tag = hmac::sign(&self.key, &bytes[..RANDOM]);
        bytes[RANDOM..].copy_from_slice(&tag.as_ref()[..TAG]);
        ConnectionId::new(&bytes)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let (random, tag) = id.split_at_checked(RANDOM).ok_or(InvalidCid)?;
        let expected = hmac::sign(&self.key, random);
        if tunnel_proto::keys::same(tag, &expected.as_ref()[..TAG]) {
            Ok(())
        } else {
            Err(InvalidCid)
        }
    }

    fn cid_len(&self) -> usize {
        RANDOM + TAG
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What quinn takes for its socket: an inbox that the forwarding threads fill, and the way out over either carrier.
#[derive(Debug)]
pub(super) struct EndpointSocket(pub(super) Arc<Shared>);

impl AsyncUdpSocket for EndpointSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    /// Sends or drops. What finds no room is lost, as it would be on any path, and QUIC sends it again.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let stride = transmit.segment_size.unwrap_or(transmit.contents.len());
        let Some(train) = Train::new(transmit.contents, stride, transmit.ecn) else {
            return Ok(());
        };
        if super::address::connection(transmit.destination).is_none() {
            let target = Target {
                to: transmit.destination,
                from: transmit.src_ip,
            };
            self.0.first_socket().send(target, train);
        } else if let Some(connection) = self.0.connections().find(transmit.destination) {
            connection.mark_used();
            connection.queue().push(train);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.inbox().poll(cx, buffers, metas).map(Ok)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_addr())
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.first_socket().max_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.first_socket().may_fragment()
    }
}

/// The socket never asks anybody to wait.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(secret: u8) -> Ids {
        let key = derive(&Secret::new([secret; 32]), b"connection ids");
        Ids {
            key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()),
            random: SystemRandom::new(),
        }
    }

    #[test]
    fn only_what_can_be_of_a_link_is_taken() {
        assert!(is_plausible(&[0x40; LEAST_SHORT]));
        assert!(is_plausible(&[0xc0, 0, 0, 0, 1, 11]));
        assert!(is_plausible(&[0xc0, 0, 0, 0, 1, 20]));
        for bad in [
            &[][..],
            &[0x40; LEAST_SHORT - 1],
            &[0xc0],
            &[0xc0, 0, 0, 0, 1],
            &[0xc0, 0, 0, 0, 1, 12],
            &[0xc0, 0, 0, 0, 2, 20],
            &[0xc0, 0, 0, 0, 0, 20],
        ] {
            assert!(!is_plausible(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_known_by_the_relay_that_made_it_and_by_no_other() {
        let mut mine = ids(1);
        let id = mine.generate_cid();
        assert_eq!(id.len(), mine.cid_len());
        assert_ne!(id, mine.generate_cid());
        assert!(ids(1).validate(&id).is_ok());
        assert!(ids(2).validate(&id).is_err());
        for bit in 0..id.len() * 8 {
            let mut bad = id.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(mine.validate(&ConnectionId::new(&bad)).is_err());
        }
        assert!(mine.validate(&ConnectionId::new(&id[..4])).is_err());
    }
}
