/* The inner loop: products of rows of a tile. kernels.c includes this file once for each kind of processor, with

       LANES, HALF     floats of a vector, and half as many: a vector that has been defined before
       ROWS, COLUMNS   of a product: as many sums, and the operands, as there are registers

   and gets multiply_tile_<LANES>. */

#define JOINED(a, b) a##_##b
#define JOIN(a, b) JOINED(a, b)
#define OWN(name) JOIN(name, LANES)

typedef float OWN(vector) __attribute__((vector_size(4 * LANES), aligned(4)));

INLINE OWN(vector) OWN(load)(const float *at) { return *(const OWN(vector) *)at; }

INLINE double OWN(sum)(OWN(vector) lanes) {
    JOIN(vector, HALF) halves[2];
    memcpy(halves, &lanes, sizeof halves);
    return JOIN(sum, HALF)(halves[0] + halves[1]);
}

/* Adds the products of ROWS rows at a with COLUMNS rows at b to the sums; n is a multiple of STRIDE. Meanwhile it fetches a
   row of what the next tile is made of: half of it where items have 4 bytes. */
INLINE void OWN(multiply)(const float *a, const float *b, ptrdiff_t n, double *sums, ptrdiff_t pitch, const char *next) {
    OWN(vector) products[ROWS][COLUMNS] = {0};
    for (ptrdiff_t k = 0; k < n; k += STRIDE) {
        __builtin_prefetch(next + 2 * k);
#pragma GCC unroll 4
        for (ptrdiff_t at = k; at < k + STRIDE; at += LANES) {
            OWN(vector) left[ROWS];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) left[i] = OWN(load)(a + i * PITCH + at);
#pragma GCC unroll 8
            for (int j = 0; j < COLUMNS; j++) {
                const OWN(vector) right = OWN(load)(b + j * PITCH + at);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) products[i][j] += left[i] * right;
            }
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) sums[i * pitch + j] += OWN(sum)(products[i][j]);
}

/* Adds the products of all rows of the tile, the lower triangle of them, to the sums, and empties the tile.
   following: the column with which the next tile will begin. */
INLINE void OWN(multiply_tile)(struct scratch *own, const struct stripe *in, ptrdiff_t following) {
    const ptrdiff_t n = (own->filled + STRIDE - 1) / STRIDE * STRIDE;
    ptrdiff_t fetched = 0;
    for (ptrdiff_t t = 0; t < in->steps; t++)
        for (ptrdiff_t k = own->filled; k < n; k++) own->tile[t * PITCH + k] = 0;
    for (ptrdiff_t i = 0; i < in->steps; i += ROWS)
        for (ptrdiff_t j = 0; j < i + ROWS && j < in->steps; j += COLUMNS) {
            const char *next = (const char *)own->tile; /* is there already */
            if (fetched < in->steps && following < in->columns)
                next = in->rows + fetched++ * in->stride + following * item_bytes(in->dtype);
            OWN(multiply)(own->tile + i * PITCH, own->tile + j * PITCH, n, own->sums + i * own->rows + j, own->rows, next);
        }
    own->filled = 0;
}

#undef OWN
#undef JOIN
#undef JOINED
#undef LANES
#undef HALF
#undef ROWS
#undef COLUMNS
