//! Spoilt text for whatever reads a file of a state directory, in unit tests.

/// Feeds a reader a genuine text with some bytes changed, and noise: for the seconds that
/// `SLUICE_FUZZ_SECONDS` says, or 2,000 times.
macro_rules! feed {
    ($genuine:expr, $read:expr) => {{
        let genuine: String = $genuine;
        let seconds = std::env::var("SLUICE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let target = bolero::check!();
        let target = match seconds.map(std::time::Duration::from_secs) {
            Some(time) => target.with_test_time(time).with_iterations(usize::MAX),
            None => target.with_iterations(2_000),
        };
        target.with_type::<(Vec<u8>, u16)>().for_each(|(noise, place)| {
            let mut text = genuine.clone().into_bytes();
            let at = usize::from(*place) % text.len();
            text.splice(at..(at + noise.len() % 4).min(text.len()), noise.iter().copied());
            let _ = $read(&String::from_utf8_lossy(&text));
            let _ = $read(&String::from_utf8_lossy(noise));
        });
    }};
}

pub(crate) use feed;
