typedef long long i64;
typedef unsigned char u8;
typedef CTYPE T;
#ifdef __CUDACC__
#define INTERNAL static __device__
#define NOINLINE static __device__ __noinline__
#define INLINE static __device__ inline
#else
#define INTERNAL static __attribute__((unused))
#define NOINLINE static __attribute__((noinline, unused))
#define INLINE static inline __attribute__((unused))
#endif
#define INFINITE ((T)__builtin_inf())
#define NOT_A_NUMBER ((T)__builtin_nan(""))
#define LARGER(x, y) ((x) > (y) ? (x) : (y))
#define SMALLER(x, y) ((x) < (y) ? (x) : (y))
#ifdef __CUDACC__
#define v_sqrt sqrtSUFFIX
#define v_floor floorSUFFIX
#define v_ceil ceilSUFFIX
#define v_trunc truncSUFFIX
#define v_rint rintSUFFIX
#define v_copysign copysignSUFFIX
#define v_fabs fabsSUFFIX
#else
#define v_sqrt __builtin_sqrtSUFFIX
#define v_floor __builtin_floorSUFFIX
#define v_ceil __builtin_ceilSUFFIX
#define v_trunc __builtin_truncSUFFIX
#define v_rint __builtin_rintSUFFIX
#define v_copysign __builtin_copysignSUFFIX
#define v_fabs __builtin_fabsSUFFIX
#endif
/* One of two numbers, without a branch: a loop with `?:` is not vectorised where one of them is a function's value. */
#ifdef T_IS_FLOAT
typedef int BITS;
#else
typedef i64 BITS;
#endif
typedef union { T number; BITS bits; } WORD;
INLINE T chosen(int condition, T x, T y) {
    const WORD a = {x}, b = {y};
    const BITS mask = -(BITS)condition;
    WORD result;
    result.bits = (a.bits & mask) | (b.bits & ~mask);
    return result.number;
}
INLINE T larger(T x, T y) {
    return chosen((x > y) | (x != x), x, y);
}
INLINE T smaller(T x, T y) {
    return chosen((x < y) | (x != x), x, y);
}
/* Whole numbers, rounded down; 0 where PyTorch raises: by zero. */
INLINE i64 floor_div(i64 x, i64 y) {
    return y == 0 ? 0 : x / y - (x % y != 0 && (x < 0) != (y < 0));
}
INLINE i64 floor_mod(i64 x, i64 y) {
    return y == 0 ? 0 : x - y * floor_div(x, y);
}
/* The rest with the sign of the divisor, and the quotient that goes with it. */
#ifndef __CUDACC__
extern T fmodSUFFIX(T, T);
#endif
INLINE T floor_rest(T x, T y) {
    const T rest = fmodSUFFIX(x, y);
    return rest != 0 && (y < 0) != (rest < 0) ? rest + y : rest;
}
INLINE T floor_quotient(T x, T y) {
    if (y == 0) return x / y;
    const T rest = fmodSUFFIX(x, y);
    T quotient = (x - rest) / y;
    if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
    if (quotient == 0) return v_copysign((T)0, x / y);
    const T whole = v_floor(quotient);
    return quotient - whole > (T)0.5 ? whole + 1 : whole;
}
/* Where x goes in n ordered numbers: before its like, or after them. */
INLINE i64 place_of(T x, const T *ordered, i64 n, i64 step, int after) {
    i64 low = 0, high = n;
    while (low < high) {
        const i64 middle = low + (high - low) / 2;
        const T there = ordered[middle * step];
        if (after ? there > x : there >= x) high = middle;
        else low = middle + 1;
    }
    return low;
}
/* Vectors, and functions of them: as GCC names them. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__AVX2__) && !defined(__CUDACC__)
#define VECTORS
typedef T VECTOR_128 __attribute__((vector_size(16)));
typedef T VECTOR_256 __attribute__((vector_size(32)));
#ifdef __AVX512F__
typedef T VECTOR_512 __attribute__((vector_size(64)));
#endif
#ifdef T_IS_FLOAT
#define T4 VECTOR_128
#define T8 VECTOR_256
#define T16 VECTOR_512
#else
#define T2 VECTOR_128
#define T4 VECTOR_256
#define T8 VECTOR_512
#endif
#endif
