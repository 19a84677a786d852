// Vectors of floats, as wide as the target has them, through the compiler's vector extensions:
// + - * and ?: work on whole vectors, a * b + c becomes one fused instruction. Only what the
// extensions cannot say (max, rounding, half precision) is spelled per instruction set.
#ifndef FAGEN_SIMD_CPU_H
#define FAGEN_SIMD_CPU_H

// GCC 12's own header leaves "undefined" vectors uninitialised and warns about it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>
#include <string.h>

#define FAGEN_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64, VECTOR_REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 32, VECTOR_REGISTERS = 16;
#endif
constexpr int LANES = VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(VECTOR_BYTES / 2)));

constexpr float INFINITY_F = __builtin_inff();
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;

FAGEN_INLINE Vec splat(float x) { return Vec{} + x; }
FAGEN_INLINE Vec load(const float *p) { Vec v; memcpy(&v, p, sizeof v); return v; }
FAGEN_INLINE void store(float *p, Vec v) { memcpy(p, &v, sizeof v); }
FAGEN_INLINE IntVec load(const int32_t *p) { IntVec v; memcpy(&v, p, sizeof v); return v; }
FAGEN_INLINE bool any_nan(Vec v) {
  const IntVec bad = v != v;
  bool any = false;
  for (int i = 0; i < LANES; ++i) any |= bad[i] != 0;
  return any;
}

FAGEN_INLINE bool all_of(IntVec condition) {
  int all = -1;
  for (int i = 0; i < LANES; ++i) all &= condition[i];
  return all != 0;
}

// max_nan(a, b) is b when either is NaN: what is compared last survives.
#ifdef __AVX512F__
FAGEN_INLINE Vec max_nan(Vec a, Vec b) { return _mm512_max_ps(a, b); }
FAGEN_INLINE Vec round_even(Vec a) { return _mm512_roundscale_ps(a, 8); }
FAGEN_INLINE Vec from_fp16(HalfVec a) { return _mm512_cvtph_ps((__m256i)a); }
FAGEN_INLINE HalfVec to_fp16(Vec a) { return (HalfVec)_mm512_cvtps_ph(a, 8); }
#else
FAGEN_INLINE Vec max_nan(Vec a, Vec b) { return _mm256_max_ps(a, b); }
FAGEN_INLINE Vec round_even(Vec a) { return _mm256_round_ps(a, 8); }
FAGEN_INLINE Vec from_fp16(HalfVec a) { return _mm256_cvtph_ps((__m128i)a); }
FAGEN_INLINE HalfVec to_fp16(Vec a) { return (HalfVec)_mm256_cvtps_ph(a, 8); }
#endif

FAGEN_INLINE Vec from_bf16(HalfVec a) { return (Vec)(__builtin_convertvector(a, IntVec) << 16); }

// Round to nearest even; a NaN stays one (its top payload bit is set, so it cannot become inf).
FAGEN_INLINE HalfVec to_bf16(Vec a) {
  const IntVec bits = (IntVec)a;
  const IntVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const IntVec kept = a != a ? bits | 0x400000 : rounded;
  return __builtin_convertvector(kept >> 16, HalfVec);
}

// 2^x by a polynomial in the distance to the nearest integer: the relative error is below 1e-7
// with EXACT and below 3e-6 without, which is plenty for 16-bit results. 0 for -inf; NaN stays NaN.
constexpr float EXP2_EXACT[] = {6.931470036506653e-1f, 2.402224242687225e-1f,
                                5.550733581185341e-2f, 9.671512991189957e-3f,
                                1.326472731307149e-3f};
constexpr float EXP2_SHORT[] = {6.931241750717163e-1f, 2.402409911155701e-1f,
                                5.590642616152763e-2f, 9.582852944731712e-3f};

// For x above -inf, or where NaN will do.
template <bool EXACT>
FAGEN_INLINE Vec exp2_finite(Vec x) {
  const Vec whole = round_even(x);
  const Vec part = x - whole;
  Vec p;
  if constexpr (EXACT) {
    p = part * EXP2_EXACT[4] + EXP2_EXACT[3];
    p = p * part + EXP2_EXACT[2];
    p = p * part + EXP2_EXACT[1];
    p = p * part + EXP2_EXACT[0];
  } else {
    p = part * EXP2_SHORT[3] + EXP2_SHORT[2];
    p = p * part + EXP2_SHORT[1];
    p = p * part + EXP2_SHORT[0];
  }
  p = p * part + 1.0f;
#ifdef __AVX512F__
  return _mm512_scalef_ps(p, whole);
#else
  // Adding to the exponent bits: beyond their range the result is 0 or inf.
  const Vec power = (Vec)((IntVec)p + ((IntVec)_mm256_cvtps_epi32(whole) << 23));
  return x < -126.0f ? Vec{} : x > 127.0f ? splat(INFINITY_F) : power;
#endif
}

template <bool EXACT>
FAGEN_INLINE Vec exp2_of(Vec x) {
  return exp2_finite<EXACT>(max_nan(splat(-1000.0f), x));
}

#endif
