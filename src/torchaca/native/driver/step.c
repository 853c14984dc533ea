/* One step by itself, and its vector-Jacobian product, for gradients that go from step to step in Python. */

/* The stages from `known` on, before `last`, which is the number of those that K has; the end of the step, and its error
   where that is asked for. */
API i64 step(const Problem *p, double t0, double t1, i64 known, i64 last, const T *y, T *K, T *y1, T *error) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal;
    const double h = t1 - t0;
    T *k[STAGES];
    for (i64 i = 0; i < last; i++) k[i] = K + i * n;
    stages(p, t0, t1, y, y1, k, known, own, p->work, 0);
    end_of(p, h, y, k, y1);
    stages(p, t0, t1, y, y1, k, own, last, p->work, 0);
    if (error) {
        const T w = (T)(h * weighed(n, m->stages, m->e, k, error));
        for (i64 i = 0; i < n; i++) error[i] *= w;
    }
    return 0;
}

/* `lam` is the cotangent of y1 and becomes that of y. Those of the stages are in G, which keeps those of the first
   `known`, that were given; `ends` gets the derivatives by t0 and t1. */
API i64 pull_step(const Problem *p, Back *b, double t0, double t1, i64 known, i64 last, const T *y, const T *y1, T *K,
                  T *G, double *ends) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal;
    const Span s = {t0, t1, t1 - t0};
    Span by = {0};
    T *k[STAGES], *g[STAGES], *at = b->work, *gy = at + m->all * n;
    for (i64 i = 0; i < last; i++) {
        k[i] = K + i * n;
        g[i] = G + i * n;
        if (i == m->f1) memcpy(at + i * n, y1, n * sizeof(T));
        else if (i) shift(n, i, m->a + i * m->all, s.h, y, k, at + i * n);
        if (i >= own || m->b[i] == 0) continue;
        if (b->timed) by.h += m->b[i] * dot(n, b->lam, k[i]);
        add(n, (T)(s.h * m->b[i]), b->lam, g[i]);
    }
    pull_stages(p, b, &s, y, at, k, g, known, last, gy, &by);
    ends[0] = by.t0 - by.h;
    ends[1] = by.t1 + by.h;
    return 0;
}
