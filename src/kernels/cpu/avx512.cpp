#include "kernels/cpu/tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define DISTIL_XLSTM_AVX512
#define DISTIL_XLSTM_VECTOR_BYTES 64
#define DISTIL_XLSTM_TABLE kAvx512Tables
#include "kernels/cpu/all.inc"
#endif
