use bytes::Bytes;
use jupyter_protocol::KernelId;

use super::{Outcome, Subject, block, numbers, read_all, same, time};
use crate::{IndexUpdate, LogStore, MemoryStore, Retention, Seq};

/// A deterministic pseudorandom generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// After any sequence of operations, the store has the same contents as the memory store.
///
/// # Errors
/// [`Failure`](super::Failure) with the seed, if the contents differ.
pub fn behaves_like_the_model(subject: &dyn Subject) -> Outcome {
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos() as u64);
    let mut random = Random(seed);
    let id = KernelId::random();
    let model = MemoryStore::new();
    let model = model.open(id)?;
    let mut store = subject.open();
    let mut log = store.open(id)?;
    let (mut first, mut last, mut clock) = (1, 0, 0);
    for step in 0..80 {
        let what = format!("seed {seed}, step {step}");
        let key = |random: &mut Random| Bytes::from(format!("k/{}", random.below(30)));
        let updates: std::collections::BTreeMap<_, _> = (0..random.below(4))
            .map(|_| {
                let value = (random.below(4) > 0).then(|| Bytes::from(format!("{step}")));
                (key(&mut random), value)
            })
            .collect();
        let updates: Vec<_> = updates
            .into_iter()
            .map(|(key, value)| IndexUpdate { key, value })
            .collect();
        match random.below(10) {
            0..=5 => {
                clock += random.below(3);
                let count = 1 + random.below(20);
                let size = if random.below(10) == 0 {
                    100_000
                } else {
                    random.below(2_000) as usize
                };
                let block = block(last + 1..=last + count, size, time(clock));
                last += count;
                log.append(&block, &updates)?;
                model.append(&block, &updates)?;
            }
            6 if !updates.is_empty() => {
                log.index_put(&updates)?;
                model.index_put(&updates)?;
            }
            7 if last > 0 => {
                // A store may keep a little more than required, so the test continues with the first entry it returns.
                let bytes = model.bytes() * (5 + random.below(5)) / 10;
                let retention = match random.below(2) {
                    0 => Retention::bytes(bytes),
                    _ => Retention::bytes(u64::MAX).after(Seq(random.below(last + 2))),
                };
                let trimmed = log.trim(&retention)?.0;
                same!(
                    trimmed >= first && trimmed <= last,
                    true,
                    "{what}: the first entry is {trimmed}"
                );
                first = trimmed;
            }
            8 if subject.persists() => {
                drop(log);
                drop(store);
                store = subject.open();
                log = store.open(id)?;
            }
            _ => {}
        }
        let bounds = (last > 0).then_some((Seq(first), Seq(last)));
        same!(log.bounds()?, bounds, "{what}: bounds");
        let after = random.below(last + 2);
        let expected = numbers(&[first.max(after + 1)..=last]);
        same!(read_all(&*log, Seq(after), 100_000)?, expected, "{what}: after {after}");
        let key = key(&mut random);
        same!(log.index_get(&key)?, model.index_get(&key)?, "{what}: {key:?}");
        let limit = 1 + random.below(40) as usize;
        let newest_first = random.below(2) == 0;
        let scan = (&b"k/"[..], &b"k0"[..]);
        same!(
            log.index_scan(scan, limit, newest_first)?,
            model.index_scan(scan, limit, newest_first)?,
            "{what}: the index"
        );
    }
    Ok(())
}
