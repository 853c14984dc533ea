/* Sums over stages, and the size of an error. nan has to stay nan: max(nan, x) is nan where nan comes first. */

static inline double at_least(double x, double low) { return low > x ? low : x; }
static inline double at_most(double x, double high) { return high < x ? high : x; }
static inline double ulp(double t) { return nextafter(fabs(t), INFINITY) - fabs(t); }
static inline T size_of(T x) { return x < 0 ? -x : x; }
static inline int is_finite(double x) { return x - x == 0; }

/* out = y + sum_j h w_j k_j, one term after the other as the loops in Python add them; zeros are left out. */
static void shift(i64 n, i64 terms, const double *w, double h, const T *y, T *const *k, T *out) {
    const T *from = y, *s[STAGES];
    T x[STAGES];
    i64 m = 0, j = 0;
    for (i64 i = 0; i < terms; i++)
        if (w[i] != 0) {
            s[m] = k[i];
            x[m++] = (T)(h * w[i]);
        }
    if (m == 0 && out != y) memcpy(out, y, n * sizeof(T));
    for (; j + 4 <= m; j += 4, from = out) {
        const T *p = s[j], *q = s[j + 1], *r = s[j + 2], *v = s[j + 3];
        const T a = x[j], b = x[j + 1], c = x[j + 2], d = x[j + 3];
#pragma GCC ivdep
        for (i64 i = 0; i < n; i++) out[i] = (((from[i] + a * p[i]) + b * q[i]) + c * r[i]) + d * v[i];
    }
    for (; j + 2 <= m; j += 2, from = out) {
        const T *p = s[j], *q = s[j + 1];
        const T a = x[j], b = x[j + 1];
#pragma GCC ivdep
        for (i64 i = 0; i < n; i++) out[i] = (from[i] + a * p[i]) + b * q[i];
    }
    for (; j < m; j++, from = out) {
        const T *p = s[j];
        const T a = x[j];
#pragma GCC ivdep
        for (i64 i = 0; i < n; i++) out[i] = from[i] + a * p[i];
    }
}

/* out = sum_j (w_j / w) k_j, where w, which is returned, is the largest of them: it joins h when the sum is used. */
static double weighed(i64 n, i64 terms, const double *w, T *const *k, T *out) {
    double ratios[STAGES];
    i64 first = 0;
    for (i64 j = 1; j < terms; j++)
        if (fabs(w[j]) > fabs(w[first])) first = j;
    for (i64 j = 0; j < terms; j++) ratios[j] = j == first ? 0 : w[j] / w[first];
    shift(n, terms, ratios, 1.0, k[first], k, out);
    return w[first];
}

/* x += h y */
static void add(i64 n, T h, const T *y, T *x) {
#pragma GCC ivdep
    for (i64 i = 0; i < n; i++) x[i] += h * y[i];
}

static double dot(i64 n, const T *x, const T *y) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

static inline T scale_of(const Tolerance *w, i64 i, T size) {
    const T scale = w->atol[i * w->atol_stride] + w->rtol[i * w->rtol_stride] * size;
    return scale < TINY ? TINY : scale;
}

/* The root of the mean square, or the largest, of `factor x / scale` over one part of the state. */
static double size_in(const Tolerance *w, i64 from, i64 to, const T *x, T factor, const T *a, const T *b) {
    double sum = 0;
    for (i64 start = from; start < to; start += 1024) { /* in T over few, in double over many */
        const i64 end = start + 1024 < to ? start + 1024 : to;
        T part = 0;
        if (w->norm == VECTOR) {
            const T relative = (T)w->relative, least = (T)w->least;
#pragma omp simd reduction(+ : part)
            for (i64 i = start; i < end; i++) {
                const T p = size_of(a[i]), q = size_of(b[i]), y = factor * x[i] / (least + relative * (p > q ? p : q));
                part += y * y;
            }
        } else if (w->norm == RMS) {
#pragma omp simd reduction(+ : part)
            for (i64 i = start; i < end; i++) {
                const T p = size_of(a[i]), q = size_of(b[i]), y = factor * x[i] / scale_of(w, i, p > q ? p : q);
                part += y * y;
            }
        } else {
            for (i64 i = start; i < end; i++) {
                const T p = size_of(a[i]), q = size_of(b[i]), y = size_of(factor * x[i] / scale_of(w, i, p > q ? p : q));
                sum = y > sum || y != y ? y : sum;
            }
        }
        sum += part;
    }
    return w->norm == MAX ? sum : sqrt(w->norm == VECTOR ? sum : sum / at_least(to - from, 1));
}

/* How large `factor x` is beside the tolerance for a state as large as a and b. */
static double relative(const Tolerance *w, const T *x, T factor, const T *a, const T *b) {
    double worst = 0;
    for (i64 part = 0; part < w->parts; part++) {
        const double own = size_in(w, part ? w->ends[part - 1] : 0, w->ends[part], x, factor, a, b);
        worst = own > worst || own != own ? own : worst;
    }
    return worst;
}
