//! What runs did, in numbers.

use std::fmt;

use serde::Serialize;

macro_rules! counts {
    ($($(#[$doc:meta])* $field:ident: $label:literal,)*) => {
        /// What a run did, in numbers.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Counts {
            /// Adds another run's.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }
        }

        impl fmt::Display for Counts {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let all = [$(($label, self.$field)),*];
                for (at, (label, count)) in all.into_iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(formatter, "{comma}{count} {label}")?;
                }
                Ok(())
            }
        }
    };
}

counts! {
    /// Puts begun.
    puts: "puts",
    /// Puts acknowledged.
    acknowledged: "acknowledged",
    /// Gets and stats that ended.
    reads: "reads",
    /// Of these, those that found the blob.
    found: "found",
    /// Of these, those answered with `NotFound`.
    not_found: "not found",
    /// Of these, those that could not be answered.
    unavailable: "unavailable",
    /// Deletions.
    deletions: "deletions",
    /// Holds placed or released.
    holds: "holds",
    /// Cluster maps proposed.
    maps: "maps",
    /// Power failures.
    power_losses: "power losses",
    /// Processes killed.
    kills: "kills",
    /// Processes stopped in good order.
    stops: "stops",
    /// Disks replaced by empty ones.
    disks_lost: "disks lost",
    /// Bits flipped on disks.
    flips: "flipped bits",
    /// Failed syncs and writes, full disks.
    disk_faults: "disk faults",
    /// Links cut.
    cuts: "links cut",
    /// Clocks moved.
    clocks: "clocks moved",
    /// Times that everything healed and was judged.
    reckonings: "reckonings",
}
