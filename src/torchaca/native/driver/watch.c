/* Events: whether somebody has to look at an accepted step, since one may happen in it.

   torchaca.events.watch says at which parts of a step g is read, and on which states, and finds out what happens. */

/* The state at a part of a step: on Hermite's cubic, or where f at its end is not known on a parabola. */
static void sampled(const Problem *p, double x, double h, const T *y, const T *y1, const T *f0, const T *f1, T *at) {
    if (f1) {
        const T a = (T)(h * x * (1 - x) * (1 - x)), b = (T)(h * (x - 1) * x * x), c = (T)(x * x * (3 - 2 * x));
        for (i64 i = 0; i < p->n; i++) at[i] = y[i] + (a * f0[i] + (b * f1[i] + c * (y1[i] - y[i])));
    } else {
        const T a = (T)(h * (x - x * x)), c = (T)(x * x);
        for (i64 i = 0; i < p->n; i++) at[i] = y[i] + (a * f0[i] + c * (y1[i] - y[i]));
    }
}

/* g of an event: at a part `theta` of a step of that basis, whose state goes to `at`, or without one at that state. */
API double g_at(const Problem *p, i64 event, double t, double theta, const T *basis, T *at) {
    const Method *m = p->method;
    double w[STAGES];
    T g;
    if (basis) {
        weights_at(m, theta, w, 0);
        memset(at, 0, p->n * sizeof(T));
        for (i64 j = m->all - 1; j >= 0; j--) /* increments before they meet y */
            if (w[j] != 0) add(p->n, (T)w[j], basis + (j + 1) * p->n, at);
        add(p->n, 1, basis, at);
    }
    evaluate(p->watch->graphs[event], (T)t, at, &g);
    return g;
}

/* Read g of each event in a step. */
static void read_events(const Problem *p, double t0, double t1, const T *y, const T *y1, const T *f0, const T *f1, T *at) {
    const i64 n = p->watch->n;
    double *values = p->watch->values;
    for (i64 i = 0; i < n; i++) values[i * (PARTS + 1)] = values[i * (PARTS + 1) + PARTS];
    for (i64 part = 1; part <= PARTS; part++) {
        const double x = (double)part / PARTS, h = t1 - t0;
        if (part < PARTS) sampled(p, x, h, y, y1, f0, f1, at);
        else memcpy(at, y1, p->n * sizeof(T));
        for (i64 i = 0; i < n; i++) values[i * (PARTS + 1) + part] = g_at(p, i, part < PARTS ? t0 + x * h : t1, x, 0, at);
    }
}

/* Whether some g may cross zero in a direction that counts, or is zero or not finite, or was on no side yet. */
static int may_happen(const Watch *w) {
    for (i64 i = 0; i < w->n; i++) {
        i64 side = w->sides[i];
        if (!side) return 1;
        for (i64 part = 1; part <= PARTS; part++) {
            const double g = w->values[i * (PARTS + 1) + part];
            const i64 now = (g > 0) - (g < 0);
            if (!now || !is_finite(g) || (now != side && w->directions[i] * now >= 0)) return 1;
            side = now;
        }
    }
    for (i64 i = 0; i < w->n; i++) w->sides[i] = w->values[i * (PARTS + 1) + PARTS] > 0 ? 1 : -1;
    return 0;
}

/* Note how many stages there are of a step that somebody has to look at; `spare` gets the first one, whose place is the
   next step's. */
static void look(const Problem *p, State *s, double t0, double t1, const T *y, const T *y1, T *const *k, i64 known,
                 T *spare) {
    const i64 f1 = p->method->f1;
    if (!p->watch) return;
    read_events(p, t0, t1, y, y1, k[0], f1 >= 0 && f1 < known ? k[f1] : 0, spare);
    s->seen = may_happen(p->watch) ? known : 0;
    if (s->seen) memcpy(spare, k[0], p->n * sizeof(T));
}
