/* One step: its stages, its end, and the outputs inside of it. */

static int jumps_at(const Problem *p, double t) {
    for (i64 i = 0; i < p->n_jumps; i++)
        if (p->jumps[i] == t) return 1;
    return 0;
}

/* The number of type T beside t towards another time. */
static T beside(double t, double other) {
    return sizeof(T) == sizeof(float) ? (T)nextafterf((float)t, (float)other) : (T)nextafter(t, other);
}

/* The time of stage i in the step from t0 to t1, as f gets it: strictly inside of the step where f jumps at its end. */
static T time_of(const Problem *p, i64 i, double t0, double t1) {
    const double c = p->method->c[i];
    if (c == 1) return p->n_jumps && jumps_at(p, t1) ? beside(t1, t0) : (T)t1;
    if (c == 0) return p->n_jumps && jumps_at(p, t0) ? beside(t0, t1) : (T)t0;
    return (T)(t0 + c * (t1 - t0));
}

static void evaluate(Graph *f, T t, const T *y, T *k) {
    void *out[1] = {k};
    f->in[0] = &t;
    f->in[1] = y;
    f->code(f->in, out, f->sizes, f->numbers, f->workspace);
}

/* f at the start of a step: behind a jump. */
API i64 slope(const Problem *p, double t, const T *y, T *k) {
    evaluate(p->value, p->n_jumps && jumps_at(p, t) ? beside(t, p->stops[p->n_stops - 1]) : (T)t, y, k);
    return 0;
}

/* The stages from `first` on, before `last`; `at` is where their states go, one after the other if `apart`. */
static void stages(const Problem *p, double t0, double t1, const T *y, const T *y1, T *const *k, i64 first, i64 last,
                   T *at, i64 apart) {
    const Method *m = p->method;
    for (i64 i = first; i < last; i++) {
        const T *state = i == m->f1 ? y1 : i ? at + i * apart : y;
        if (i && i != m->f1) shift(p->n, i, m->a + i * m->all, t1 - t0, y, k, at + i * apart);
        evaluate(p->value, time_of(p, i, t0, t1), state, k[i]);
    }
}

/* y1 = y + h sum_i b_i k_i: increments are added up before they meet y. */
static void end_of(const Problem *p, double h, const T *y, T *const *k, T *y1) {
    const Method *m = p->method;
    const T w = (T)(h * weighed(p->n, m->stages - m->fsal, m->b, k, y1));
#pragma GCC ivdep
    for (i64 i = 0; i < p->n; i++) y1[i] = y[i] + w * y1[i];
}

/* b_i(theta), and where `slopes` are asked for their derivatives. */
static void weights_at(const Method *m, double theta, double *weights, double *slopes) {
    for (i64 j = 0; j < m->all; j++) {
        const double *p = m->p + j * (m->degree + 1);
        double total = p[m->degree], slope = 0;
        for (i64 d = m->degree - 1; d >= 0; d--) {
            slope = slope * theta + total;
            total = total * theta + p[d];
        }
        weights[j] = total;
        if (slopes) slopes[j] = slope;
    }
}

static int ends_step(const Problem *p, i64 i, double t1) { return p->exact[i] && p->ts[i] == t1; }

/* Write the outputs up to t1, and the basis if somebody wants it. The first `known` stages are there; returns how many
   are then. */
static i64 outputs(const Problem *p, State *s, Chunk *c, double t0, double t1, const T *y, const T *y1, T *const *k,
                   i64 known, T *trial) {
    const Method *m = p->method;
    const i64 n = p->n;
    i64 last = s->outputs, inside = p->dense;
    for (; last < p->n_ts && p->sign * p->ts[last] <= p->sign * t1; last++) inside |= !ends_step(p, last, t1);
    if (inside && known < m->all) {
        stages(p, t0, t1, y, y1, k, known, m->all, trial, 0);
        s->calls += m->all - known;
        known = m->all;
    }
    for (; s->outputs < last; s->outputs++) {
        T *out = p->ys + s->outputs * n;
        if (ends_step(p, s->outputs, t1)) {
            memcpy(out, y1, n * sizeof(T));
            continue;
        }
        double w[STAGES], h = t1 - t0;
        weights_at(m, (p->ts[s->outputs] - t0) / h, w, 0);
        memset(out, 0, n * sizeof(T));
        for (i64 j = m->all - 1; j >= 0; j--) /* increments before they meet y */
            if (w[j] != 0) add(n, (T)(h * w[j]), k[j], out);
        add(n, 1, y, out);
    }
    if (p->dense) {
        T *row = c->B + c->steps * (m->all + 1) * n;
        const T h = (T)(t1 - t0);
        memcpy(row, y, n * sizeof(T));
        for (i64 j = 0; j < m->all; j++)
            for (i64 i = 0; i < n; i++) row[(j + 1) * n + i] = h * k[j][i];
    }
    return known;
}

/* Where the stages of the next step go: f at its start has its place in `work`, and where stages are kept a copy. */
static void places(const Problem *p, const Chunk *c, T **k) {
    T *base = c->rows ? c->K + c->steps * c->rows * p->n : p->work;
    k[0] = p->work;
    for (i64 i = 1; i < p->method->all; i++) k[i] = (c->rows && i < c->rows ? base : p->work) + i * p->n;
}

static T *state_at(const Problem *p, const Chunk *c, i64 step) { return c->Y + (c->kept ? step : step & 1) * p->n; }

/* Note an accepted step whose first `known` stages are there. */
static void accept(const Problem *p, State *s, Chunk *c, double t1, T *const *k, i64 known) {
    const i64 f1 = p->method->f1;
    if (c->rows) memcpy(c->K + c->steps * c->rows * p->n, k[0], p->n * sizeof(T));
    s->known = f1 >= 0 && f1 < known && !(p->n_jumps && jumps_at(p, t1));
    if (s->known) memcpy(p->work, k[f1], p->n * sizeof(T));
    if (fabs(t1 - s->t) < s->shortest) s->shortest = fabs(t1 - s->t);
    c->times[++c->steps] = s->t = t1;
    s->accepted++;
}
