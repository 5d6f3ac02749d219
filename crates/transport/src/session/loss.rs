//! What QUIC's losses say of the size of its packets.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use quinn::PathStats;

use super::Driver;

/// What QUIC had lost when it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Losses {
    packets: u64,
    bytes: u64,
    /// How often it found that only its smallest packets come through, and how large they were before.
    black_holes: u64,
    size: u16,
}

impl Losses {
    /// Whether packets were lost that were about as large as they get.
    fn look(&mut self, path: &PathStats) -> bool {
        let packets = path.lost_packets.saturating_sub(self.packets);
        let bytes = path.lost_bytes.saturating_sub(self.bytes);
        (self.packets, self.bytes) = (path.lost_packets, path.lost_bytes);
        packets > 0 && bytes / packets > u64::from(path.current_mtu) / 4 * 3
    }

    /// Whether packets shrank, and how large they were.
    fn shrank(&mut self, path: &PathStats) -> Option<u16> {
        let shrank = path.black_holes_detected > self.black_holes;
        self.black_holes = path.black_holes_detected;
        let before = std::mem::replace(&mut self.size, path.current_mtu);
        shrank.then_some(before)
    }
}

impl Driver {
    /// Tells the agent how large packets are, and when such are lost.
    pub(super) fn watch_losses(&mut self, path: &PathStats, now: Instant) {
        self.agent.set_packet_size(path.current_mtu, now);
        if self.losses.look(path) {
            self.agent.handle_loss(now);
        }
        let before = self.losses.shrank(path);
        if before.is_some_and(|before| before > self.peer.packet_max.load(Relaxed)) {
            // What was lost of the larger ones says nothing of the path's rate.
            self.epoch.advance(true);
            self.wake_quinn();
        }
    }
}
