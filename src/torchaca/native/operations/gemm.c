/* For few columns: a row of the result at a time, in registers. */
INLINE void narrow(const i64 n, i64 m, i64 k, const T *a, i64 ai, i64 ap, const T *b, i64 bp, i64 bj, T *c, i64 ldc) {
    for (i64 i = 0; i < m; i++) {
        T s[4] = {0, 0, 0, 0};
        for (i64 p = 0; p < k; p++)
            for (i64 j = 0; j < n; j++) s[j] += a[i * ai + p * ap] * b[p * bp + j * bj];
        for (i64 j = 0; j < n; j++) c[i * ldc + j] = s[j];
    }
}
/* For columns of b that lie one after the other: an inner product at a time. */
INLINE void inner(i64 m, i64 n, i64 k, const T *a, i64 ai, i64 ap, const T *b, i64 ldb, T *c, i64 ldc) {
    for (i64 i = 0; i < m; i++) {
        for (i64 j = 0; j < n; j++) {
            T s = 0;
            #pragma omp simd reduction(+ : s)
            for (i64 p = 0; p < k; p++) s += a[i * ai + p * ap] * b[p + j * ldb];
            c[i * ldc + j] = s;
        }
    }
}
/* For rows of b: sums of them. */
INLINE void outer(i64 m, i64 n, i64 k, const T *a, i64 ai, i64 ap, const T *b, i64 bp, i64 bj, T *c, i64 ldc) {
    for (i64 i = 0; i < m; i++) {
        T *const row = c + i * ldc;
        for (i64 j = 0; j < n; j++) row[j] = 0;
        for (i64 p = 0; p < k; p++) {
            const T x = a[i * ai + p * ap];
            #pragma omp simd
            for (i64 j = 0; j < n; j++) row[j] += x * b[p * bp + j * bj];
        }
    }
}
/* Row-major c[m, n] = a[m, k] b[k, n]; a is stored as its transpose if ta, b if tb. */
#ifndef __CUDACC__
static void (*gemm_)(const char *, const char *, const int *, const int *, const int *, const T *, const T *, const int *,
                     const T *, const int *, const T *, T *, const int *);
#endif
#define BLAS_TAKES 2147483647
NOINLINE void gemm(int ta, int tb, i64 m, i64 n, i64 k, const T *a, i64 lda, const T *b, i64 ldb, T *c, i64 ldc) {
#ifndef __CUDACC__
    const int apart = lda >= (ta ? m : k) && ldb >= (tb ? k : n) && lda > 0 && ldb > 0 && ldc > 0;
    const int fits = m <= BLAS_TAKES && n <= BLAS_TAKES && k <= BLAS_TAKES && lda <= BLAS_TAKES && ldb <= BLAS_TAKES && ldc <= BLAS_TAKES;
    const int pays = n > 4 ? (double)m * n * k > 512 : k > 4 && (double)m * n * k > 2048; /* measured */
    if (gemm_ && apart && fits && pays) {
        const int m_ = (int)m, n_ = (int)n, k_ = (int)k, lda_ = (int)lda, ldb_ = (int)ldb, ldc_ = (int)ldc;
        const T one = 1, zero = 0;
        gemm_(tb ? "T" : "N", ta ? "T" : "N", &n_, &m_, &k_, &one, b, &ldb_, a, &lda_, &zero, c, &ldc_);
        return;
    }
#endif
    const i64 ai = ta ? 1 : lda, ap = ta ? lda : 1, bp = tb ? 1 : ldb, bj = tb ? ldb : 1;
    if (n == 1) narrow(1, m, k, a, ai, ap, b, bp, bj, c, ldc);
    else if (n == 2) narrow(2, m, k, a, ai, ap, b, bp, bj, c, ldc);
    else if (n == 3) narrow(3, m, k, a, ai, ap, b, bp, bj, c, ldc);
    else if (n == 4) narrow(4, m, k, a, ai, ap, b, bp, bj, c, ldc);
    else if (tb && k >= 8) inner(m, n, k, a, ai, ap, b, ldb, c, ldc);
    else outer(m, n, k, a, ai, ap, b, bp, bj, c, ldc);
}
