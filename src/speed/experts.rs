//! Which experts a batch touches, and how often a cache of experts is hit.

/// The share of `count` experts that at least one of `tokens` tokens uses, each token drawing `used` of them evenly.
///
/// Real routing is more uneven, so fewer are touched: copies are rather over- than underestimated.
pub(super) fn touched(count: u32, used: u32, tokens: f64) -> f64 {
    if count == 0 || used >= count {
        return 1.0;
    }
    1.0 - (1.0 - f64::from(used) / f64::from(count)).powf(tokens)
}

/// Share of the experts that fit in the cache, and the share of draws that it then serves: published figures of a least
/// recently used cache over 512 experts (64 of them 67%, 128 of them 81%), straight lines between them.
const HITS: [(f64, f64); 4] = [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (1.0, 1.0)];

/// What the basis says of it.
pub(super) const ASSUMPTION: &str = "; expert cache: hit rate assumed from published figures (1/8 of the experts cached: 67%, 1/4: 81%), measure it with your prompts";

/// How far off a launch with an expert cache may be: even routing would hit no more than the share that is cached.
pub(super) const UNCERTAINTY: f64 = 0.5;

/// The share of draws that a cache of this share of the experts serves.
pub(super) fn hits(share: f64) -> f64 {
    for (low, high) in HITS.iter().zip(HITS.iter().skip(1)) {
        if share <= high.0 {
            let along = (share - low.0).max(0.0) / (high.0 - low.0);
            return low.1 + along * (high.1 - low.1);
        }
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tokens_touch_more_experts() {
        assert!((touched(128, 8, 1.0) - 0.0625).abs() < 1e-12);
        assert!(touched(128, 8, 32.0) > 0.8 && touched(128, 8, 32.0) < 0.9);
        assert!(touched(128, 8, 512.0) > 0.999);
        assert!((touched(0, 0, 1.0) - 1.0).abs() < 1e-12, "a dense weight is read whole");
    }

    #[test]
    fn the_published_points_are_on_the_curve() {
        for (share, expected) in [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (1.0, 1.0), (2.0, 1.0)] {
            assert!((hits(share) - expected).abs() < 1e-9, "{share}");
        }
        let curve: Vec<f64> = (0..=100_u8).map(|n| hits(f64::from(n) / 100.0)).collect();
        assert!(curve.is_sorted());
    }
}
