// Tiles in shared memory and the tensor cores' 16 x 8 x 16 product, for 2-byte types (sm_80 on). A tile is row-major with COLS columns, a
// multiple of 64; its 16-byte pieces are swizzled (piece ^= row & 7), so that eight rows of one column of pieces lie in different banks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace distil_xlstm::kernels::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

// Waits for all but the newest PENDING groups of this thread's copies.
template <int PENDING>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Copies 16 bytes, or writes zeros where `valid` is false (the source is not read then).
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

template <int COLS>
__device__ inline int tile_offset(int row, int piece) {
  return row * COLS + ((piece ^ (row & 7)) << 3);
}

// `rows` rows of `cols` elements, `stride` apart, into a tile of ROWS x COLS; the rest of the tile becomes 0. Rows and strides are whole
// 16-byte pieces. Each thread copies one column of pieces, every THREADS / (COLS / 8) rows.
template <int ROWS, int COLS, int THREADS, typename T>
__device__ inline void load_tile(T* tile, const T* source, int64_t stride, int rows, int cols) {
  constexpr int kStep = THREADS / (COLS / 8);
  static_assert(ROWS % kStep == 0 && kStep % 8 == 0, "the swizzle is the same for all rows of a thread");
  const int row = threadIdx.x / (COLS / 8), piece = threadIdx.x % (COLS / 8);
  T* to = tile + tile_offset<COLS>(row, piece);
  const T* from = source + row * stride + piece * 8;
  const int left = piece * 8 < cols ? rows - row : 0;
#pragma unroll
  for (int i = 0; i < ROWS / kStep; ++i) {
    copy_async(to + i * kStep * COLS, from, left > i * kStep);
    from += kStep * stride;
  }
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}

// Operand A (16 x 16) at (m, k). kTransposed: the tile holds [k][m].
template <int COLS, bool kTransposed, typename T>
__device__ inline void load_a(uint32_t (&a)[4], const T* tile, int m, int k) {
  const int lane = threadIdx.x & 31;
  if constexpr (kTransposed) {
    load_matrices_transposed(a, tile + tile_offset<COLS>(k + (lane & 7) + (lane >> 4) * 8, (m >> 3) + ((lane >> 3) & 1)));
  } else {
    load_matrices(a, tile + tile_offset<COLS>(m + (lane & 15), (k >> 3) + (lane >> 4)));
  }
}

// Operand B (16 x 16, as two 16 x 8: b[0..1] and b[2..3]) at (k, n). kColumns: the tile holds [n][k], else [k][n].
template <int COLS, bool kColumns, typename T>
__device__ inline void load_b(uint32_t (&b)[4], const T* tile, int k, int n) {
  const int lane = threadIdx.x & 31;
  if constexpr (kColumns) {
    load_matrices(b, tile + tile_offset<COLS>(n + (lane & 7) + (lane >> 4) * 8, (k >> 3) + ((lane >> 3) & 1)));
  } else {
    load_matrices_transposed(b, tile + tile_offset<COLS>(k + (lane & 7) + ((lane >> 3) & 1) * 8, (n >> 3) + (lane >> 4)));
  }
}

// acc += A B. Lane l holds acc[0..1] at row l / 4, columns 2 (l % 4) and the next, acc[2..3] eight rows below.
__device__ inline void multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// acc (16 MT x 8 NT of a warp, origin m, n) += A B over DEPTH.
template <typename T, int MT, int NT, int DEPTH, int A_COLS, bool kATransposed, int B_COLS, bool kBColumns>
__device__ inline void multiply_tiles(float (&acc)[MT][NT][4], const T* a_tile, const T* b_tile, int m, int n) {
#pragma unroll
  for (int k = 0; k < DEPTH; k += 16) {
    uint32_t a[MT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) load_a<A_COLS, kATransposed>(a[i], a_tile, m + i * 16, k);
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      uint32_t b[4];
      load_b<B_COLS, kBColumns>(b, b_tile, k, n + j * 8);
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        multiply(acc[i][j], a[i], b[0], b[1], T{});
        multiply(acc[i][j + 1], a[i], b[2], b[3], T{});
      }
    }
  }
}

// Two floats as two elements; float16 saturates instead of becoming infinite.
__device__ inline uint32_t pack(float x, float y, __nv_bfloat16) {
  const __nv_bfloat162 p = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&p);
}
__device__ inline uint32_t pack(float x, float y, __half) {
  const __half2 p = __floats2half2_rn(fminf(fmaxf(x, -65504.0f), 65504.0f), fminf(fmaxf(y, -65504.0f), 65504.0f));
  return *reinterpret_cast<const uint32_t*>(&p);
}
__device__ inline float2 unpack(uint32_t x, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&x));
}
__device__ inline float2 unpack(uint32_t x, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&x));
}

// Neighbouring lanes swap halves of two adjacent 8-column fragments, so that each lane holds four columns in a row: of the first fragment
// in even lanes, of the second in odd ones, from column 4 ((lane % 4) / 2) on. x, y: the lane's words of the two fragments.
__device__ inline uint2 gather_four(uint32_t x, uint32_t y) {
  const bool odd = threadIdx.x & 1;
  const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);
  return odd ? make_uint2(got, y) : make_uint2(x, got);
}
// The column, counted from the first fragment's first, that gather_four gives this lane.
__device__ inline int gathered_column() {
  return (threadIdx.x & 1) * 8 + ((threadIdx.x >> 1) & 1) * 4;
}

}  // namespace distil_xlstm::kernels::cuda
