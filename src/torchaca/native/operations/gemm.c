/* Row-major c[m, n] = a[m, k] b[k, n]; a is stored as its transpose if ta, b if tb. */
#ifndef __CUDACC__
static void (*gemm_)(const char *, const char *, const int *, const int *, const int *, const T *, const T *, const int *,
                     const T *, const int *, const T *, T *, const int *);
#endif
#define BLAS_PAYS 256 /* multiplications */
#define BLAS_TAKES 2147483647
NOINLINE void gemm(int ta, int tb, i64 m, i64 n, i64 k, const T *a, i64 lda, const T *b, i64 ldb, T *c, i64 ldc) {
#ifndef __CUDACC__
    const int apart = lda >= (ta ? m : k) && ldb >= (tb ? k : n) && lda > 0 && ldb > 0 && ldc > 0;
    const int fits = m <= BLAS_TAKES && n <= BLAS_TAKES && k <= BLAS_TAKES && lda <= BLAS_TAKES && ldb <= BLAS_TAKES && ldc <= BLAS_TAKES;
    if (gemm_ && apart && fits && (double)m * n * k > BLAS_PAYS) {
        const int m_ = (int)m, n_ = (int)n, k_ = (int)k, lda_ = (int)lda, ldb_ = (int)ldb, ldc_ = (int)ldc;
        const T one = 1, zero = 0;
        gemm_(tb ? "T" : "N", ta ? "T" : "N", &n_, &m_, &k_, &one, b, &ldb_, a, &lda_, &zero, c, &ldc_);
        return;
    }
#endif
    const i64 ai = ta ? 1 : lda, ap = ta ? lda : 1;
    for (i64 i = 0; i < m; i++) {
        T *const row = c + i * ldc;
        if (tb) {
            for (i64 j = 0; j < n; j++) {
                T s = 0;
                if (ta) {
                    for (i64 p = 0; p < k; p++) s += a[i + p * lda] * b[p + j * ldb];
                } else {
                    #pragma omp simd reduction(+ : s)
                    for (i64 p = 0; p < k; p++) s += a[i * lda + p] * b[p + j * ldb];
                }
                row[j] = s;
            }
        } else {
            for (i64 j = 0; j < n; j++) row[j] = 0;
            for (i64 p = 0; p < k; p++) {
                const T x = a[i * ai + p * ap];
                #pragma omp simd
                for (i64 j = 0; j < n; j++) row[j] += x * b[p * ldb + j];
            }
        }
    }
}
