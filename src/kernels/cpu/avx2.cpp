#include "kernels/cpu/tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define DISTIL_XLSTM_AVX2
#define DISTIL_XLSTM_VECTOR_BYTES 32
#define DISTIL_XLSTM_TABLE kAvx2Tables
#include "kernels/cpu/all.inc"
#endif
