/* gobuf.h: a saved execution context is one stack pointer; the callee-saved registers lie on the stack at and above it.
 *
 * gmp_switch(&from->sp, to->sp) pushes the callee-saved registers of the ABI, stores the stack pointer in *save_sp,
 * loads to_sp and pops.  It returns in the other context, after that context's own call of gmp_switch.  x86-64 SysV:
 * rbx rbp r12-r15 (MXCSR and the x87 control word are left alone: CPython and C callers do not change them across a
 * call); x86-64 on Windows: rbx rbp rdi rsi r12-r15 xmm6-xmm15 and the three words in which a thread keeps the bounds of
 * its stack; AArch64: x19-x30, d8-d15.  Nothing else is saved: no signal mask, no errno, no TLS.
 * Never keep errno or the address of a TLS variable across a switch: the context may continue on another thread.
 *
 * Life of a Gobuf: zeroed once; then either gobuf_init_thread (the thread's own stack), or gobuf_set_stack +
 * gobuf_init, which may be repeated when the context has ended (a gobuf_switch away from it with from_dies) or has
 * never run; at last gobuf_destroy.  Ordinary builds need sp only; the rest keeps the sanitizers informed.
 */
#ifndef GMP_GOBUF_H
#define GMP_GOBUF_H

#include "base.h"

typedef struct Gobuf {
    void *sp;
#ifdef _WIN32
    void *lo; /* from gobuf_set_stack: gobuf_init tells the new context the bounds of its stack */
#endif
#ifdef GMP_TSAN
    void *tsan_fiber;
    bool tsan_owned; /* made by gobuf_init, not the thread's own */
#endif
#ifdef GMP_ASAN
    void *asan_fake_stack;
    const void *asan_bottom; /* the stack's bounds, from gobuf_set_stack or gobuf_init_thread */
    size_t asan_size;
#endif
} Gobuf;

/* asm_amd64.S / asm_amd64_windows.S / asm_arm64.S */
GMP_HIDDEN void gmp_switch(void **save_sp, void *to_sp);
/* Calls fn(arg) on the stack that ends at sp, and returns. */
GMP_HIDDEN void gmp_call_on(void *sp, void (*fn)(void *), void *arg);
GMP_HIDDEN void gmp_trampoline(void); /* first return address of a new context: calls entry(arg), which never returns */

/* Prepares buf so that the first switch to it calls entry(arg) on the stack that ends (exclusively) at top.
 * top is aligned down to 16 bytes; GOBUF_FRAME bytes below it are written.  entry must never return; unwinders stop
 * at it. */
void gobuf_init(Gobuf *buf, void *top, void (*entry)(void *), void *arg);
#if defined(__aarch64__)
#define GOBUF_FRAME 160
#elif defined(_WIN32)
#define GOBUF_FRAME 264
#else
#define GOBUF_FRAME 56
#endif

/* Sanitizer fibre hooks (stack.c); nothing in ordinary builds.  gobuf_entered is the first call of every entry
 * function.
 * ThreadSanitizer allows some 8,000 contexts at a time.  LeakSanitizer does not look for pointers on parked stacks. */
#if defined(GMP_ASAN) || defined(GMP_TSAN)
void gobuf_switch(Gobuf *from, Gobuf *to, bool from_dies);
void gobuf_entered(void);
void gobuf_init_thread(Gobuf *buf);                      /* buf stands for the calling thread's own stack */
void gobuf_set_stack(Gobuf *buf, void *lo, size_t size); /* must precede gobuf_init */
void gobuf_destroy(Gobuf *buf);                          /* not while it is the running context */
#else
static inline void
gobuf_switch(Gobuf *from, Gobuf *to, bool from_dies)
{
    (void)from_dies;
    gmp_switch(&from->sp, to->sp);
}
#define gobuf_entered() ((void)0)
#define gobuf_init_thread(buf) ((void)(buf))
#if defined(_WIN32)
#define gobuf_set_stack(buf, low, size) ((void)((buf)->lo = (low)))
#else
#define gobuf_set_stack(buf, lo, size) ((void)0)
#endif
#define gobuf_destroy(buf) ((void)(buf))
#endif

#endif
