/* asm_arm64.S: gmp_switch and gmp_trampoline for AArch64 (AAPCS64, Linux and macOS).
 *
 * A parked context, from its saved stack pointer upwards (gobuf_init builds the same), 160 bytes:
 *     x19 x20 .. x28 | x29 x30 | d8 .. d15
 * Works with branch target identification and pointer authentication: C functions sign and check their own return
 * addresses, and each finds its own stack pointer again; gmp_switch itself signs nothing, because gobuf_init could not.
 */
#if defined(__aarch64__)

#if defined(__APPLE__)
#define SYM(x) _##x
#define HIDDEN(x) .private_extern SYM(x)
#define FUNC(x)
#define END(x)
#else
#define SYM(x) x
#define HIDDEN(x) .hidden x
#define FUNC(x) .type x, %function
#define END(x) .size x, . - x
#endif
#define BTI_C hint #34                  /* a nop before ARMv8.5 */

/* Mach-O allows no label inside a procedure: there it becomes two. */
#if defined(__APPLE__)
#define SPLIT .cfi_endproc
    .macro RESUME
    .cfi_startproc
    .cfi_undefined x30
    .endm
#else
#define SPLIT
#define RESUME
#endif

    .text
    .globl SYM(gmp_switch)
    HIDDEN(gmp_switch)
    FUNC(gmp_switch)
    .p2align 5
SYM(gmp_switch):                        /* x0 = save_sp, x1 = to_sp */
    .cfi_startproc
    BTI_C
    sub sp, sp, #160
    .cfi_adjust_cfa_offset 160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    .cfi_rel_offset x19, 0
    .cfi_rel_offset x20, 8
    .cfi_rel_offset x21, 16
    .cfi_rel_offset x22, 24
    .cfi_rel_offset x23, 32
    .cfi_rel_offset x24, 40
    .cfi_rel_offset x25, 48
    .cfi_rel_offset x26, 56
    .cfi_rel_offset x27, 64
    .cfi_rel_offset x28, 72
    .cfi_rel_offset x29, 80
    .cfi_rel_offset x30, 88
    .cfi_rel_offset d8, 96
    .cfi_rel_offset d9, 104
    .cfi_rel_offset d10, 112
    .cfi_rel_offset d11, 120
    .cfi_rel_offset d12, 128
    .cfi_rel_offset d13, 136
    .cfi_rel_offset d14, 144
    .cfi_rel_offset d15, 152
    mov x9, sp
    str x9, [x0]
    mov sp, x1                          /* the other stack has the same layout: the unwind rules stay true */
    ldp x29, x30, [sp, #80]
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    .cfi_adjust_cfa_offset -160
    .cfi_restore x19
    .cfi_restore x20
    .cfi_restore x21
    .cfi_restore x22
    .cfi_restore x23
    .cfi_restore x24
    .cfi_restore x25
    .cfi_restore x26
    .cfi_restore x27
    .cfi_restore x28
    .cfi_restore x29
    .cfi_restore x30
    .cfi_restore d8
    .cfi_restore d9
    .cfi_restore d10
    .cfi_restore d11
    .cfi_restore d12
    .cfi_restore d13
    .cfi_restore d14
    .cfi_restore d15
    ret
    .cfi_endproc
    END(gmp_switch)

    .globl SYM(gmp_call_on)
    HIDDEN(gmp_call_on)
    FUNC(gmp_call_on)
    .p2align 4
SYM(gmp_call_on):                       /* x0 = sp, x1 = fn, x2 = arg */
    .cfi_startproc
    BTI_C
    stp x29, x30, [sp, #-16]!
    .cfi_adjust_cfa_offset 16
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    mov x29, sp
    .cfi_def_cfa_register x29
    and x0, x0, #-16
    mov sp, x0
    mov x0, x2
    blr x1
    mov sp, x29
    .cfi_def_cfa_register sp
    ldp x29, x30, [sp], #16
    .cfi_adjust_cfa_offset -16
    .cfi_restore x29
    .cfi_restore x30
    ret
    .cfi_endproc
    END(gmp_call_on)

    .globl SYM(gmp_trampoline)
    HIDDEN(gmp_trampoline)
    FUNC(gmp_trampoline)
    .p2align 4
    .cfi_startproc
    .cfi_undefined x30                  /* no caller: unwinders stop here */
    nop                                 /* unwinders look up return address - 1 */
    SPLIT
SYM(gmp_trampoline):                    /* x19 = entry, x20 = arg, x29 = 0; sp is a multiple of 16 */
    RESUME
    BTI_C
    mov x0, x20
    blr x19
    brk #1                              /* entry returned */
    .cfi_endproc
    END(gmp_trampoline)

#if defined(__ELF__)
    .section .note.gnu.property, "a"
    .p2align 3
    .long 4, 16, 5                      /* name size, data size, NT_GNU_PROPERTY_TYPE_0 */
    .asciz "GNU"
    .long 0xc0000000, 4, 1, 0           /* GNU_PROPERTY_AARCH64_FEATURE_1_AND: BTI */
#endif

#endif

#if defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
