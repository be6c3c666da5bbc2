//! Trains: datagrams of one size, one behind the other in one buffer; the last may be shorter.
//!
//! The kernel makes them on receipt (GRO) and takes them apart on sending (GSO), so that one call moves up to 64 datagrams.

use quinn_udp::EcnCodepoint;
use tunnel_proto::bind;

/// Datagrams that the kernel takes in one call (`UDP_MAX_SEGMENTS` of Linux).
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes that the kernel takes in one call: the most that an IP packet carries.
pub(super) const MAX_BYTES: usize = tunnel_proto::defaults::MAX_DATAGRAM;

/// Datagrams of one sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Train<'a> {
    /// The datagrams.
    pub(super) bytes: &'a [u8],
    /// Size of each but the last; at least 1.
    pub(super) stride: usize,
    /// The congestion mark that all of them carry.
    pub(super) ecn: Option<EcnCodepoint>,
}

impl<'a> Train<'a> {
    /// Makes a train of what was received. `None` when it is empty.
    pub(super) fn new(bytes: &'a [u8], stride: usize, ecn: Option<EcnCodepoint>) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self {
            bytes,
            stride: stride.clamp(1, bytes.len()),
            ecn,
        })
    }

    /// Returns how many datagrams there are.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len().div_ceil(self.stride)
    }

    /// Returns the datagrams.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.stride)
    }

    /// Says whether a control datagram stands in the train.
    pub(super) fn has_control(&self) -> bool {
        self.datagrams().any(bind::is_control)
    }

    /// Takes the train apart where a control datagram stands in it.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'a>> + use<'a> {
        let Self {
            mut bytes,
            stride,
            ecn,
        } = *self;
        std::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            let data = bytes
                .chunks(stride)
                .take_while(|datagram| !bind::is_control(datagram));
            let length = data.map(<[u8]>::len).sum::<usize>();
            let cut = if length == 0 {
                stride.min(bytes.len())
            } else {
                length
            };
            let (part, rest) = bytes.split_at(cut);
            bytes = rest;
            Some(if length == 0 {
                Part::Control(part)
            } else {
                Part::Data(Train {
                    bytes: part,
                    stride,
                    ecn,
                })
            })
        })
    }
}

/// A part of a train.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// Datagrams to forward.
    Data(Train<'a>),
    /// One control datagram.
    Control(&'a [u8]),
}

/// How much of a train went on its way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Sent {
    /// Datagrams that did.
    pub(super) datagrams: usize,
    /// Their bytes.
    pub(super) bytes: usize,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

/// Gathers datagrams that stand apart, as in a WebSocket message, into trains.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    bytes: Vec<u8>,
    stride: usize,
}

impl Gatherer {
    /// Adds a datagram; `emit` gets the train that it does not fit into, or that it ends.
    pub(super) fn push(&mut self, datagram: &[u8], mut emit: impl FnMut(Train<'_>)) {
        let full = self.bytes.len() / self.stride.max(1) >= MAX_SEGMENTS;
        if full || datagram.len() > self.stride || self.bytes.len() + datagram.len() > MAX_BYTES {
            self.finish(&mut emit);
            self.stride = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        if datagram.len() < self.stride {
            self.finish(emit);
        }
    }

    /// Ends the train that is under way.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(Train<'_>)) {
        if let Some(train) = Train::new(&self.bytes, self.stride, None) {
            emit(train);
        }
        self.bytes.clear();
        self.stride = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(length: usize, first: u8) -> Vec<u8> {
        let mut bytes = vec![first; length];
        bytes[0] = first;
        bytes
    }

    #[test]
    fn a_train_is_split_where_control_stands_in_it() {
        let bytes = [
            datagram(50, 0x40),
            datagram(50, 0xc1),
            datagram(50, 1),
            datagram(50, 0x41),
            datagram(20, 2),
        ];
        let bytes = bytes.concat();
        let train = Train::new(&bytes, 50, None).unwrap();
        assert!(train.has_control());
        let parts: Vec<(bool, usize)> = train
            .parts()
            .map(|part| match part {
                Part::Data(train) => (false, train.len()),
                Part::Control(datagram) => (true, datagram.len()),
            })
            .collect();
        assert_eq!(parts, [(false, 2), (true, 50), (false, 1), (true, 20)]);
    }

    #[test]
    fn an_empty_train_is_none_and_a_stride_is_never_zero() {
        assert!(Train::new(&[], 0, None).is_none());
        assert_eq!(Train::new(&[1], 0, None).unwrap().len(), 1);
        assert_eq!(Train::new(&[1; 3], 9, None).unwrap().len(), 1);
    }

    #[test]
    fn gathered_datagrams_come_out_in_order_and_whole() {
        let lengths = [1200, 1200, 1200, 300, 40, 1200, 1300, 1300, 7];
        let mut gatherer = Gatherer::default();
        let mut out = Vec::new();
        let mut trains = 0;
        let mut emit = |train: Train<'_>| {
            trains += 1;
            out.extend(train.datagrams().map(<[u8]>::len));
        };
        for length in lengths {
            gatherer.push(&datagram(length, 0x40), &mut emit);
        }
        gatherer.finish(&mut emit);
        assert_eq!(out, lengths);
        assert_eq!(trains, 4);
    }

    #[test]
    fn a_gathered_train_fits_one_call() {
        let mut gatherer = Gatherer::default();
        let mut out = 0;
        for _ in 0..1000 {
            gatherer.push(&datagram(1452, 0x40), |train| {
                assert!(train.len() <= MAX_SEGMENTS && train.bytes.len() <= MAX_BYTES);
                out += train.len();
            });
        }
        gatherer.finish(|train| out += train.len());
        assert_eq!(out, 1000);
    }
}
