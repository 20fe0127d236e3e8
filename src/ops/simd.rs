//! One source, compiled for several instruction sets; the machine's best is taken at run time.

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of the architecture has.
    Portable,
    /// AVX2 and FMA: 8 numbers of `f32` at a time.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 numbers of `f32` at a time.
    Avx512,
    /// AVX-512 with products of `bf16` pairs (`vdpbf16ps`): twice the arithmetic of `f32`.
    Avx512Bf16,
}

impl Level {
    /// The best of this machine. Asked once: kernels ask often.
    pub fn detect() -> Self {
        static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *LEVEL.get_or_init(Self::of_this_machine)
    }

    #[cfg(target_arch = "x86_64")]
    fn of_this_machine() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (true, true) if is_x86_feature_detected!("avx512bf16") => Self::Avx512Bf16,
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    const fn of_this_machine() -> Self {
        Self::Portable
    }

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable code",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 BF16",
        }
    }
}

/// Defines a function whose body is compiled for each [`Level`]; a call runs the one for this machine.
///
/// The body is plain Rust that the compiler vectorizes: loops over slices whose lengths it can see are equal.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident: $bound:path),*>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($t),*>)? ($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($t),*>)? ($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            match $crate::ops::simd::Level::detect() {
                // SAFETY: the machine has these instructions, as `detect` found.
                #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
                $crate::ops::simd::Level::Avx512 | $crate::ops::simd::Level::Avx512Bf16 => return unsafe { avx512 $(::<$($t),*>)? ($($arg),*) },
                // SAFETY: as above.
                #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
                $crate::ops::simd::Level::Avx2 => return unsafe { avx2 $(::<$($t),*>)? ($($arg),*) },
                $crate::ops::simd::Level::Portable => {}
            }
            body $(::<$($t),*>)? ($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// `eˣ`, within 2 units in the last place for `-87 < x < 88`; 0 below, and infinite above. Branch-free, so that loops of it
/// are vectorized.
///
/// `x = n·ln 2 + f` with `|f| ≤ ln 2 / 2`; `e^f` by its Taylor polynomial of degree 7, scaled by `2ⁿ`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // NaN passes through the polynomial.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.7 { 88.7 } else { clamped };
    // Adding and taking away 1.5·2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let f = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * f + 1.0 / 720.0;
    let p = p * f + 1.0 / 120.0;
    let p = p * f + 1.0 / 24.0;
    let p = p * f + 1.0 / 6.0;
    let p = p * f + 0.5;
    let p = p * f + 1.0;
    let p = p * f + 1.0;
    // 2ⁿ in two factors: n reaches 128.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = exponent >> 1;
    let power = |e: i32| f32::from_bits(((e + 127) << 23) as u32);
    let value = p * power(half) * power(exponent - half);
    if x < -87.3 { 0.0 } else { value }
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((got - expected).abs() / expected);
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-90.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(sigmoid(40.0) == 1.0 && sigmoid(-100.0) < 1e-38);
    }
}
