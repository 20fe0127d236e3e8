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
/// The body is plain Rust that the compiler vectorizes: loops over slices whose lengths it can see are equal. It knows the
/// constant `FMA`: whether products and sums may be fused ([`multiply_add`]).
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident: $bound:path),*>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($($t: $bound,)*)? const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body::<$($($t,)*)? true>($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($t: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body::<$($($t,)*)? true>($($arg),*) }

            match $crate::ops::simd::Level::detect() {
                // SAFETY: the machine has these instructions, as `detect` found.
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
                $crate::ops::simd::Level::Avx512 | $crate::ops::simd::Level::Avx512Bf16 => unsafe {
                    avx512 $(::<$($t),*>)? ($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
                $crate::ops::simd::Level::Avx2 => unsafe { avx2 $(::<$($t),*>)? ($($arg),*) },
                _ => body::<$($($t,)*)? false>($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// `a·b + c`, in one rounding where the instruction set has that: elsewhere it would be a call of a library.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `eˣ`, within 2 units in the last place for `-87 ≤ x ≤ 88`; at most 2e-38 below, and at least 3.4e38 above, which is finite.
/// Branch-free, so that loops of it are vectorized.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // NaN passes: it is neither below nor above.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.722_83 { 88.722_83 } else { x };
    let (shifted, f) = reduce::<FMA>(x);
    let p = multiply_add::<FMA>(slope_of_exp::<FMA>(f), f, 1.0);
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `n` and `f` with `x = n·ln 2 + f` and `|f| ≤ ln 2 / 2`; `n` is given as a float that has it in its lowest bits.
#[inline(always)]
fn reduce<const FMA: bool>(x: f32) -> (f32, f32) {
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let f = multiply_add::<FMA>(n, -0.693_359_4, x);
    (shifted, multiply_add::<FMA>(n, 2.121_944_4e-4, f))
}

/// Adding 1.5·2²³ rounds to the nearest integer, which then stands in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// `(e^f - 1)/f` for `|f| ≤ ln 2 / 2`, of the polynomial `1 + f·(1 + ..)` of degree 6 that is `e^f` with the least relative
/// error (3e-9).
#[inline(always)]
fn slope_of_exp<const FMA: bool>(f: f32) -> f32 {
    let p = 0.001_381_454;
    let p = multiply_add::<FMA>(p, f, 0.008_368_745);
    let p = multiply_add::<FMA>(p, f, 0.041_668_39);
    let p = multiply_add::<FMA>(p, f, 0.166_665_21);
    let p = multiply_add::<FMA>(p, f, 0.499_999_94);
    multiply_add::<FMA>(p, f, 1.0)
}

/// `tanh x` and `1 - |tanh x|`, each within 4 units in its last place (the latter is at least 8e-31). Branch-free.
///
/// With `u = e^(2|x|) - 1`, they are `u/(u + 2)` and `2/(u + 2)`. `u` is made of `e^f - 1`, so that nothing cancels near 0:
/// `2ⁿ·(e^f - 1) + (2ⁿ - 1)`.
#[inline(always)]
pub(crate) fn tanh_and_rest<const FMA: bool>(x: f32) -> (f32, f32) {
    let twice = 2.0 * x.abs();
    let twice = if twice > 70.0 { 70.0 } else { twice };
    let (shifted, f) = reduce::<FMA>(twice);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let u = multiply_add::<FMA>(power, f * slope_of_exp::<FMA>(f), power - 1.0);
    ((u / (u + 2.0)).copysign(x), 2.0 / (u + 2.0))
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The sum of 16 lanes, halves upon halves: a fixed order that takes four steps.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range() {
        let mut worst = 0f64;
        for i in -870_000..885_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                worst = worst.max((f64::from(got) - expected).abs() / expected);
            }
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!((3.4e38..=f32::MAX).contains(&exp::<true>(f32::INFINITY)));
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(sigmoid::<true>(40.0) == 1.0 && sigmoid::<true>(-100.0) < 1e-37);
    }

    #[test]
    fn tanh_is_close_over_its_range() {
        let (mut worst, mut worst_rest) = (0f64, 0f64);
        let near_zero = (0..3000).map(|i| 1e-30 * 1.03f32.powi(i)).take_while(|x| *x < 40.0);
        for x in near_zero.chain((0..200_000).map(|i| i as f32 * 5e-5)) {
            let expected = f64::from(x).tanh();
            let rest = 2.0 / ((2.0 * f64::from(x)).exp() + 1.0);
            for (sign, (got, got_rest)) in [
                (1.0, tanh_and_rest::<true>(x)),
                (1.0, tanh_and_rest::<false>(x)),
                (-1.0, tanh_and_rest::<true>(-x)),
                (-1.0, tanh_and_rest::<false>(-x)),
            ] {
                worst = worst.max((sign * f64::from(got) - expected).abs() / expected.max(1e-40));
                worst_rest = worst_rest.max((f64::from(got_rest) - rest).abs() / rest.max(1e-23));
            }
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert!(worst_rest < 4e-7, "relative error {worst_rest} of the rest");
        assert_eq!(tanh_and_rest::<true>(0.0), (0.0, 1.0));
        assert_eq!(tanh_and_rest::<true>(f32::INFINITY).0, 1.0);
        assert_eq!(tanh_and_rest::<false>(f32::NEG_INFINITY).0, -1.0);
        assert!(tanh_and_rest::<true>(f32::NAN).0.is_nan());
    }
}
