//! A leg of a circuit, as bare as can be: one UDP socket that binds.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tunnel_proto::CircuitId;
use tunnel_proto::bind::{Control, Kind, Role, SIZE};
use tunnel_proto::keys::{LegKey, Secret};

use crate::api::SOON;

/// A socket with the key of a leg.
pub(crate) struct Leg {
    socket: UdpSocket,
    key: LegKey,
    circuit: CircuitId,
    role: Role,
    counter: u64,
}

impl Leg {
    pub(crate) async fn new(relay: SocketAddr, circuit: CircuitId, role: Role, key: Secret) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(relay).await.unwrap();
        Self {
            socket,
            key: LegKey::new(key),
            circuit,
            role,
            counter: 0,
        }
    }

    /// Takes the key of a rotation.
    pub(crate) fn rekey(&mut self, key: Secret) {
        self.key = LegKey::new(key);
    }

    /// Binds, answering a challenge if there is one.
    pub(crate) async fn bind(&mut self) {
        let mut value = 0;
        loop {
            self.counter += 1;
            let (kind, circuit, role, counter) = (Kind::Bind, self.circuit, self.role, self.counter);
            let bind = Control {
                kind,
                circuit,
                role,
                counter,
                value,
            }
            .encode(&self.key);
            self.socket.send(&bind).await.unwrap();
            let answer = self.control().await;
            match answer.kind {
                Kind::Bound => return,
                Kind::Challenge => value = answer.value,
                other => panic!("{other:?} is no answer to a bind"),
            }
        }
    }

    /// Waits for a control datagram.
    pub(crate) async fn control(&self) -> Control {
        let mut datagram = [0; SIZE];
        let received = tokio::time::timeout(SOON, self.socket.recv(&mut datagram)).await;
        let length = received.expect("a datagram in time").unwrap();
        assert!(Control::is_authentic(&datagram[..length], &self.key));
        Control::decode(&datagram[..length]).unwrap()
    }

    /// Sends a datagram to the other leg, which receives it.
    pub(crate) async fn reaches(&self, other: &Self) {
        self.socket.send(b"\x40 through the circuit").await.unwrap();
        let mut datagram = [0; 100];
        let received = tokio::time::timeout(SOON, other.socket.recv(&mut datagram)).await;
        assert_eq!(
            &datagram[..received.expect("a datagram in time").unwrap()],
            b"\x40 through the circuit"
        );
    }
}
