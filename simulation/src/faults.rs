//! What breaks, and comes back.

use lazaret_protocol::NodeId;
use lazaret_storage_node::{Disk, EngineError, SimDisk};

use crate::machine::RESERVE_BYTES;
use crate::names::node;
use crate::network::Party;
use crate::random::Decisions;
use crate::run::{CLIENTS, Run};
use crate::temper::draw_weather;

/// A clock this far off is wrong; others are merely not in step.
const WRONG_MS: i64 = 60_000;

impl Run {
    /// Machines whose power went while they wrote are taken for what they are.
    pub(crate) fn bury_the_fallen(&mut self) {
        for machine in self.machines.iter_mut().filter(|machine| machine.has_fallen()) {
            self.world.model().counts.power_losses += 1;
            machine.lose_power(self.world.decide(Decisions::next));
        }
    }

    /// A process that is gone comes back, or one is stopped in good order.
    pub(crate) async fn restart_one(&mut self) {
        let at = self.decide(|decisions| decisions.below(self.machines.len() as u64)) as usize;
        let down = self.machines.iter().position(|machine| !machine.is_running());
        if let Some(down) = down {
            // The machine may have lost its power while its process was dead.
            if self.temper.power && self.decide(|decisions| decisions.once_in(4)) {
                let seed = self.decide(Decisions::next);
                self.machines.get_mut(down).into_iter().for_each(|machine| machine.lose_power(seed));
            }
            return self.start(down);
        }
        if !self.temper.kills || !self.decide(|decisions| decisions.once_in(4)) {
            return;
        }
        let Some(machine) = self.machines.get_mut(at) else { return };
        self.world.note(format!("{} stops", node(machine.id)));
        self.world.model().counts.stops += 1;
        if !machine.stop().await && !machine.has_fallen() {
            let id = machine.id;
            self.violated(format!("{} does not stop", node(id)));
        }
    }

    pub(crate) fn start(&mut self, at: usize) {
        let Some(machine) = self.machines.get_mut(at) else { return };
        if machine.is_running() {
            return;
        }
        if self.temper.disks && !self.calm && self.world.decide(|decisions| decisions.once_in(8)) {
            machine.disk().cut_power_after(self.world.decide(|decisions| decisions.below(60)));
        }
        let id = machine.id;
        self.world.note(format!("{} starts", node(id)));
        let Err(error) = machine.start() else { return };
        self.world.note(format!("{} could not start: {error}", node(id)));
        if machine.disk().power().is_off() {
            machine.lose_power(self.world.decide(Decisions::next));
        } else if !matches!(error, EngineError::Disk(_)) || !self.temper.disks || self.calm {
            self.violated(format!("{} does not start: {error}", node(id)));
        }
    }

    pub(crate) fn break_a_node(&mut self) {
        let (at, seed, how) = self.decide(|decisions| {
            (decisions.below(self.machines.len() as u64) as usize, decisions.next(), decisions.below(10))
        });
        // With too many gone nothing happens any more.
        let down = self.machines.iter().filter(|machine| !machine.is_running()).count();
        if down > self.machines.len() / 2 {
            return;
        }
        let Some(machine) = self.machines.get_mut(at) else { return };
        let id = machine.id;
        match how {
            0..4 if self.temper.power => {
                self.world.model().counts.power_losses += 1;
                self.world.note(format!("{} loses its power", node(id)));
                machine.lose_power(seed);
            }
            4..8 if self.temper.kills => {
                self.world.model().counts.kills += 1;
                self.world.note(format!("{} is killed", node(id)));
                machine.kill();
            }
            8 if self.temper.losses => self.lose_a_disk(at),
            _ => {}
        }
    }

    fn lose_a_disk(&mut self, at: usize) {
        let Some(id) = self.machines.get(at).map(|machine| machine.id) else { return };
        let alone = self.world.model().min_replica() == 1;
        // What one copy only was promised of goes with it.
        if !(self.may_destroy(id) || alone && self.decide(|decisions| decisions.once_in(3))) {
            return;
        }
        self.note(format!("{} loses its disk", node(id)));
        let mut model = self.world.model();
        model.counts.disks_lost += 1;
        model.confirmations_lost(id);
        if alone {
            model.may_lose();
        }
        drop(model);
        // Whoever puts in another disk sets the node up by the map of the day.
        if let Some(machine) = self.machines.get_mut(at) {
            machine.lose_disk(self.map.clone());
        }
    }

    /// Whether copies on `id` may be destroyed so that every acknowledged blob must still be there. If so, they will be.
    fn may_destroy(&mut self, id: NodeId) -> bool {
        let more = usize::from(!self.destroyed.contains(&id));
        let may = self.destroyed.len() + more < self.world.model().min_replica();
        if may && more > 0 {
            self.destroyed.push(id);
        }
        may
    }

    pub(crate) fn break_a_disk(&mut self) {
        if !self.temper.disks {
            return;
        }
        let (at, how, number) = self.decide(|decisions| {
            (decisions.below(self.machines.len() as u64) as usize, decisions.below(6), decisions.next())
        });
        if how == 4 {
            return self.flip_a_bit(at, number);
        }
        let Some(machine) = self.machines.get(at) else { return };
        let disk = machine.disk();
        let what = match how {
            0 => {
                disk.fail_syncs(1);
                "fails a sync"
            }
            1 => {
                disk.fail_writes(1);
                "fails a write"
            }
            2 => {
                disk.cut_power_after(number % 40);
                "will lose its power"
            }
            3 => {
                let used = disk.space().map_or(0, |space| space.total_bytes - space.free_bytes);
                disk.set_total_bytes(used + number % (2 * RESERVE_BYTES));
                "has a disk that is nearly full"
            }
            _ => {
                disk.set_total_bytes(1 << 40);
                "has space again"
            }
        };
        self.world.model().counts.disk_faults += 1;
        self.note(format!("{} {what}", node(machine.id)));
    }

    fn flip_a_bit(&mut self, at: usize, number: u64) {
        let Some(id) = self.machines.get(at).map(|machine| machine.id) else { return };
        if !self.may_destroy(id) {
            return;
        }
        if let Some(machine) = self.machines.get_mut(at)
            && flip(machine.disk(), number)
        {
            (machine.damaged, machine.was_damaged) = (true, true);
            self.world.model().counts.flips += 1;
            self.note(format!("{} has a flipped bit", node(id)));
        }
    }

    pub(crate) fn break_the_network(&mut self) {
        let mut parties: Vec<Party> = self.machines.iter().map(|machine| Party::Node(machine.id)).collect();
        parties.extend((0..=CLIENTS).map(Party::Client));
        let (one, other, how) = self.decide(|decisions| {
            (decisions.pick(&parties).copied(), decisions.pick(&parties).copied(), decisions.below(8))
        });
        let (Some(one), Some(other)) = (one, other) else { return };
        match how {
            0..4 if self.temper.cuts && one != other => {
                self.world.model().counts.cuts += 1;
                self.note(format!("nothing passes from {one} to {other}"));
                self.network.cut(one, other);
                if how < 2 {
                    self.network.cut(other, one);
                }
            }
            4..6 if self.temper.weather => {
                let weather = self.decide(draw_weather);
                self.note(format!("{weather:?}"));
                self.network.set_weather(weather);
            }
            6.. => {
                self.note("links work");
                self.network.mend();
            }
            _ => {}
        }
    }

    /// Moves a node's clock. Most nodes keep the right time: nothing could be said of a cluster in which they don't.
    pub(crate) fn break_a_clock(&mut self) {
        if !self.temper.clocks {
            return;
        }
        let (at, ahead_ms) = self.decide(|decisions| {
            let ahead_ms = match decisions.below(4) {
                0 => 0,
                1 => decisions.below(8_000) as i64 - 4_000,
                2 => decisions.below(1_200_000) as i64 - 600_000,
                _ => decisions.below(200 * 3_600_000) as i64 - 100 * 3_600_000,
            };
            (decisions.below(self.machines.len() as u64) as usize, ahead_ms)
        });
        let wrong = self
            .machines
            .iter()
            .enumerate()
            .filter(|(other, machine)| *other != at && machine.clock.ahead_ms().abs() > WRONG_MS)
            .count();
        if ahead_ms.abs() > WRONG_MS && 2 * (wrong + 1) >= self.map.nodes.len() {
            return;
        }
        if let Some(machine) = self.machines.get(at) {
            self.world.model().counts.clocks += 1;
            self.note(format!("the clock of {} is {ahead_ms} ms ahead", node(machine.id)));
            machine.clock.set_ahead(ahead_ms);
        }
    }
}

/// Flips a bit somewhere on the disk; false if nothing is on it.
fn flip(disk: &SimDisk, number: u64) -> bool {
    let Ok(mut segments) = disk.segments() else { return false };
    segments.sort_unstable();
    let Some(&address) = Decisions::new(number).pick(&segments) else { return false };
    let Ok(length) = disk.length(address) else { return false };
    length > 0 && disk.flip_bit(address, number.rotate_left(20) % length, (number % 8) as u8)
}
