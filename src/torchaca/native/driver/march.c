/* Steps between given times: `stops` has all of them, and the one at `stop` is where the next step ends. */

API i64 march(const Problem *p, State *s, Chunk *c, double slice) {
    const Method *m = p->method;
    const double until = seconds() + slice;
    T *k[STAGES], *trial = p->work + m->all * p->n;
    for (; s->stop < p->n_stops; s->stop++) {
        if (c->steps == c->room) return FULL;
        if (seconds() > until) return PAUSED;
        const double t0 = s->t, t1 = p->stops[s->stop];
        const T *y = state_at(p, c, c->steps);
        T *y1 = state_at(p, c, c->steps + 1);
        i64 known = s->known;
        places(p, c, k);
        stages(p, t0, t1, y, y1, k, known, m->stages - m->fsal, trial, 0);
        s->calls += m->stages - m->fsal - known;
        end_of(p, t1 - t0, y, k, y1);
        known = outputs(p, s, c, t0, t1, y, y1, k, m->stages - m->fsal, trial);
        look(p, s, t0, t1, y, y1, k, known, trial);
        accept(p, s, c, t1, k, known);
        if (s->seen) {
            s->stop++;
            return SEEN;
        }
    }
    return REACHED;
}
