/* A training step of three bodies by hand: dopri5 with the I controller, all states kept, each step again backwards. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N 18
#define S 6 /* stages, without the last one of the error estimate */
#define MOST 4096
static const double K1 = 0.200484, K2 = 7.239324;
static const double A[7][6] = {
    {0},
    {1. / 5},
    {3. / 40, 9. / 40},
    {44. / 45, -56. / 15, 32. / 9},
    {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
    {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
    {35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84}};
static const double E[7] = {71. / 57600,      0, -71. / 16695, 71. / 1920, -17253. / 339200, 22. / 525,
                            -1. / 40};

static void field(const double *y, const double *m, double *k) {
    for (int i = 0; i < 9; i++) k[i] = K2 * y[9 + i], k[9 + i] = 0;
    for (int i = 0; i < 3; i++)
        for (int j = i + 1; j < 3; j++) {
            double u[3], d2 = 0;
            for (int c = 0; c < 3; c++) u[c] = y[3 * j + c] - y[3 * i + c], d2 += u[c] * u[c];
            const double s = K1 / (d2 * sqrt(d2));
            for (int c = 0; c < 3; c++) k[9 + 3 * i + c] += m[j] * s * u[c], k[9 + 3 * j + c] -= m[i] * s * u[c];
        }
}

/* gy = g df/dy, gm += g df/dm */
static void pull(const double *y, const double *m, const double *g, double *gy, double *gm) {
    for (int i = 0; i < 9; i++) gy[i] = 0, gy[9 + i] = K2 * g[i];
    for (int i = 0; i < 3; i++)
        for (int j = i + 1; j < 3; j++) {
            double u[3], d2 = 0, gi = 0, gj = 0;
            const double *a = g + 9 + 3 * i, *b = g + 9 + 3 * j;
            for (int c = 0; c < 3; c++) u[c] = y[3 * j + c] - y[3 * i + c], d2 += u[c] * u[c];
            for (int c = 0; c < 3; c++) gi += a[c] * u[c], gj += b[c] * u[c];
            const double s = K1 / (d2 * sqrt(d2)), q = 3 * (m[j] * gi - m[i] * gj) / d2;
            gm[j] += s * gi, gm[i] -= s * gj;
            for (int c = 0; c < 3; c++) {
                const double gu = s * (m[j] * a[c] - m[i] * b[c] - q * u[c]);
                gy[3 * j + c] += gu, gy[3 * i + c] -= gu;
            }
        }
}

static void stage(const double *y, double h, double k[][N], int i, double *at) {
    for (int c = 0; c < N; c++) {
        double sum = 0;
        for (int j = 0; j < i; j++) sum += A[i][j] * k[j][c];
        at[c] = y[c] + h * sum;
    }
}

/* The loss is the mean square of y(t1). Returns the number of accepted steps; `counts` are evaluations and rejections.
   `y0` becomes y(t1); gy and gm are the gradients. */
__attribute__((visibility("default"))) int train(double *y0, const double *m, double t1, double tolerance, double dt,
                                                 double *gy, double *gm, int *counts) {
    static _Thread_local double Y[MOST + 1][N], H[MOST];
    double k[7][N], at[S][N], g[S][N], t = 0, y1[N], out[N];
    int n = 0, calm = 0;
    memcpy(Y[0], y0, sizeof y1);
    field(Y[0], m, k[0]);
    counts[0] = 1, counts[1] = 0;
    while (t < t1 && n < MOST) {
        const int lands = t1 - t <= dt * (1 + 1e-9);
        const double h = lands ? t1 - t : dt, *y = Y[n];
        double sum = 0;
        for (int i = 1; i < 7; i++) {
            stage(y, h, k, i, y1);
            field(y1, m, k[i]);
        }
        counts[0] += 6;
        for (int c = 0; c < N; c++) {
            double e = 0;
            for (int i = 0; i < 7; i++) e += E[i] * k[i][c];
            e *= h / (tolerance + tolerance * fmax(fabs(y[c]), fabs(y1[c])));
            sum += e * e;
        }
        const double ratio = sqrt(sum / N), factor = 0.9 * pow(fmax(ratio, 1e-10), -0.2);
        const int ok = ratio <= 1;
        dt = h * fmin(fmax(factor, 0.2), ok && !calm ? 10.0 : 1.0);
        calm = !ok;
        if (!ok) {
            counts[1]++;
            continue;
        }
        t = lands ? t1 : t + h;
        H[n++] = h;
        memcpy(Y[n], y1, sizeof y1);
        memcpy(k[0], k[6], sizeof y1);
    }
    memcpy(y0, Y[n], sizeof y1);
    for (int c = 0; c < N; c++) gy[c] = 2 * y0[c] / N;
    for (int step = n - 1; step >= 0; step--) {
        const double h = H[step], *y = Y[step];
        for (int i = 0; i < S; i++) {
            stage(y, h, k, i, at[i]);
            field(at[i], m, k[i]);
            for (int c = 0; c < N; c++) g[i][c] = h * A[6][i] * gy[c];
        }
        for (int i = S - 1; i >= 0; i--) {
            pull(at[i], m, g[i], out, gm);
            for (int c = 0; c < N; c++) gy[c] += out[c];
            for (int j = 0; j < i; j++)
                for (int c = 0; c < N; c++) g[j][c] += h * A[i][j] * out[c];
        }
    }
    return n;
}
