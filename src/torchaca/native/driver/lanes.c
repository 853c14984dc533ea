/* Lanes: W samples side by side. Number i of a state is that of sample w at i * W + w, so that what stands in a row of
   the processor's registers is the same number of W samples, each at a time and with a step size of its own. */

#define EACH_LANE for (i64 w = 0; w < W; w++)

/* The processor's own vectors: GCC makes slow code of larger ones. A number of all lanes is so many PARTS. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
enum { BYTES = W * sizeof(T), PARTS_OF = BYTES > VECTOR_BYTES ? BYTES / VECTOR_BYTES : 1 };
typedef T VEC __attribute__((vector_size(BYTES / PARTS_OF), aligned(sizeof(T)), may_alias));
#ifdef FLOATS
typedef int32_t BITS;
#else
typedef int64_t BITS;
#endif
typedef BITS MASK __attribute__((vector_size(BYTES / PARTS_OF), aligned(sizeof(T)), may_alias));
typedef union {
    T numbers[W];
    VEC parts[PARTS_OF];
} LANES;
#define EACH_PART for (i64 q = 0; q < PARTS_OF; q++)

static inline VEC *parts_at(T *x) { return (VEC *)x; }
static inline const VEC *parts_of(const T *x) { return (const VEC *)x; }

/* h v as numbers of a state. */
static inline LANES scaled(const double *h, double v) {
    LANES x;
    EACH_LANE x.numbers[w] = (T)(h[w] * v);
    return x;
}

/* out = y + sum_j h v_j k_j for each lane, one term after the other as `shift` adds them; zeros are left out. */
static void shift_lanes(i64 n, i64 terms, const double *v, const double *h, const T *y, T *const *k, T *out) {
    const VEC *s[STAGES], *from = parts_of(y);
    LANES x[STAGES];
    i64 m = 0;
    for (i64 j = 0; j < terms; j++)
        if (v[j] != 0) {
            s[m] = parts_of(k[j]);
            x[m++] = scaled(h, v[j]);
        }
    for (i64 i = 0; i < n; i++) {
        VEC sum[PARTS_OF];
        EACH_PART sum[q] = from[i * PARTS_OF + q];
        for (i64 j = 0; j < m; j++) EACH_PART sum[q] += x[j].parts[q] * s[j][i * PARTS_OF + q];
        EACH_PART parts_at(out)[i * PARTS_OF + q] = sum[q];
    }
}

/* out = sum_j (v_j / v) k_j, where v, which is returned, is the largest of them; see `weighed`. */
static double weighed_lanes(i64 n, i64 terms, const double *v, T *const *k, T *out) {
    double ratios[STAGES], ones[W];
    i64 first = 0;
    EACH_LANE ones[w] = 1;
    for (i64 j = 1; j < terms; j++)
        if (fabs(v[j]) > fabs(v[first])) first = j;
    for (i64 j = 0; j < terms; j++) ratios[j] = j == first ? 0 : v[j] / v[first];
    shift_lanes(n, terms, ratios, ones, k[first], k, out);
    return v[first];
}

/* x += h y */
static inline void add_lanes(i64 n, LANES h, const T *y, T *x) {
    for (i64 i = 0; i < n * PARTS_OF; i += PARTS_OF) EACH_PART parts_at(x)[i + q] += h.parts[q] * parts_of(y)[i + q];
}

static void scatter(i64 n, i64 lane, const T *from, T *lanes) {
    for (i64 i = 0; i < n; i++) lanes[i * W + lane] = from[i];
}

static void gather(i64 n, i64 lane, const T *lanes, T *to) {
    for (i64 i = 0; i < n; i++) to[i] = lanes[i * W + lane];
}

/* x where a mask says so, else y. */
static inline VEC either(MASK mask, VEC x, VEC y) { return (VEC)(((MASK)x & mask) | ((MASK)y & ~mask)); }

static inline VEC sizes_of(VEC x) { return (VEC)((MASK)x & ~(MASK)(-(VEC){0})); }

/* to = from in the lanes that are `chosen`. */
static void take_lanes(i64 n, const i64 *chosen, const T *from, T *to) {
    union {
        BITS numbers[W];
        MASK parts[PARTS_OF];
    } mask;
    EACH_LANE mask.numbers[w] = -(BITS)(chosen[w] != 0);
    for (i64 i = 0; i < n * PARTS_OF; i += PARTS_OF)
        EACH_PART parts_at(to)[i + q] = either(mask.parts[q], parts_of(from)[i + q], parts_of(to)[i + q]);
}

/* x over the tolerance for a state of that size. */
static inline VEC over(const Tolerance *t, const T *rtol, const T *atol, VEC x, VEC size) {
    if (t->norm == VECTOR) return x / ((T)t->least + (T)t->relative * size);
    const VEC tiny = (VEC){0} + TINY, own = *parts_of(atol) + *parts_of(rtol) * size;
    return x / either((MASK)(own < tiny), tiny, own);
}

/* The sum over one part of the state that `size_in` takes the root of; or the largest. */
static void sum_in(const Tolerance *t, const T *rtol, const T *atol, i64 from, i64 to, const T *x, LANES factor, const T *a,
                   const T *b, double *sum) {
    for (i64 start = from; start < to; start += 1024) { /* in T over few, in double over many */
        const i64 end = start + 1024 < to ? start + 1024 : to;
        LANES part = {{0}};
        for (i64 i = start; i < end; i++) EACH_PART {
                const i64 at = i * W + q * (W / PARTS_OF);
                const VEC p = sizes_of(*parts_of(a + at)), o = sizes_of(*parts_of(b + at)), size = either((MASK)(p > o), p, o);
                const VEC y = over(t, rtol + at, atol + at, factor.parts[q] * *parts_of(x + at), size), z = sizes_of(y);
                const VEC most = part.parts[q];
                if (t->norm == MAX) part.parts[q] = either((MASK)(z > most) | (MASK)(z != z), z, most);
                else part.parts[q] = most + y * y;
            }
        EACH_LANE {
            const double own = part.numbers[w];
            sum[w] = t->norm != MAX ? sum[w] + own : own > sum[w] || own != own ? own : sum[w];
        }
    }
}

/* How large `factor x` is in each lane beside the tolerance for a state as large as a and b; see `relative`. */
static void relative_lanes(const Tolerance *t, const T *rtol, const T *atol, const T *x, const double *factor, const T *a,
                           const T *b, double *worst) {
    const LANES own = scaled(factor, 1);
    EACH_LANE worst[w] = 0;
    for (i64 part = 0; part < t->parts; part++) {
        const i64 from = part ? t->ends[part - 1] : 0, to = t->ends[part];
        double sum[W] = {0};
        sum_in(t, rtol, atol, from, to, x, own, a, b, sum);
        EACH_LANE {
            const double size = t->norm == MAX      ? sum[w]
                                : t->norm == VECTOR ? sqrt(sum[w])
                                                    : sqrt(sum[w] / at_least(to - from, 1));
            worst[w] = size > worst[w] || size != size ? size : worst[w];
        }
    }
}

static void evaluate_lanes(Graph *f, const T *t, const T *y, T *k) {
    void *out[1] = {k};
    f->in[0] = t;
    f->in[1] = y;
    f->code(f->in, out, f->sizes, f->numbers, f->workspace);
}

/* The times of stage i in steps from t0 to t1; see `time_of`. */
static inline void times_of(const Problem *p, i64 i, const double *t0, const double *t1, T *t) {
    const double c = p->method->c[i];
    if (p->n_jumps) EACH_LANE t[w] = time_of(p, i, t0[w], t1[w]);
    else if (c == 0) EACH_LANE t[w] = (T)t0[w];
    else if (c == 1) EACH_LANE t[w] = (T)t1[w];
    else EACH_LANE t[w] = (T)(t0[w] + c * (t1[w] - t0[w]));
}

/* The stages from `first` on, before `last`, of steps from t0 to t1; see `stages`. */
static void stages_lanes(const Problem *p, const double *t0, const double *t1, const T *y, const T *y1, T *const *k,
                         i64 first, i64 last, T *at, i64 apart) {
    const Method *m = p->method;
    double h[W];
    T t[W];
    EACH_LANE h[w] = t1[w] - t0[w];
    for (i64 i = first; i < last; i++) {
        const T *state = i == m->f1 ? y1 : i ? at + i * apart : y;
        if (i && i != m->f1) shift_lanes(p->n, i, m->a + i * m->all, h, y, k, at + i * apart);
        times_of(p, i, t0, t1, t);
        evaluate_lanes(p->value, t, state, k[i]);
    }
}

/* y1 = y + h sum_i b_i k_i; see `end_of`. */
static void end_of_lanes(const Problem *p, const double *t0, const double *t1, const T *y, T *const *k, T *y1) {
    const Method *m = p->method;
    double h[W];
    EACH_LANE h[w] = t1[w] - t0[w];
    const LANES b = scaled(h, weighed_lanes(p->n, m->stages - m->fsal, m->b, k, y1));
    for (i64 i = 0; i < p->n * PARTS_OF; i += PARTS_OF)
        EACH_PART parts_at(y1)[i + q] = parts_of(y)[i + q] + b.parts[q] * parts_of(y1)[i + q];
}
