// A matt surface under lights that are fixed in the world: its colour is the same in every view, as that of Gaussians
// without spherical harmonics. Textures are decoded to linear light by the graphics before they are filtered.

uniform vec4 base_color;
uniform vec3 emissive;
uniform float least_alpha;  // below it nothing is drawn
uniform vec3 eye;
uniform float ambient;
uniform vec3 light_directions[LIGHTS];
uniform float light_strengths[LIGHTS];
#ifdef BASE_TEXTURE
uniform sampler2D base_texture;
TO_FRAGMENT in vec2 frag_uv;
#endif
#ifdef GLOW_TEXTURE
uniform sampler2D glow_texture;
TO_FRAGMENT in vec2 frag_glow_uv;
#endif
#ifdef COLORS
TO_FRAGMENT in vec4 frag_color;
#endif
#ifdef NORMALS
in vec3 frag_normal;
#endif
in vec3 frag_position;
#ifdef BESIDE_FRONTS
uniform sampler2D fronts;
#endif

out vec4 pixel;

vec3 linear_to_srgb(vec3 c)
{
    c = clamp(c, 0.0, 1.0);
    return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
}

void main()
{
#ifdef BESIDE_FRONTS
    if (texelFetch(fronts, ivec2(gl_FragCoord.xy), 0).r > 0.0) discard;
#endif
    vec4 base = base_color;
#ifdef BASE_TEXTURE
#ifdef SHARP
    // Averaged alpha passes the cutoff nowhere where a cut-out is fine; the samples of a pixel are averaged instead.
    base *= textureLod(base_texture, frag_uv, 0.0);
#else
    base *= texture(base_texture, frag_uv);
#endif
#endif
#ifdef COLORS
    base *= frag_color;
#endif
#ifdef CUTS
    // Not for opaque meshes: with a discard the depth test comes after the shader, which takes a fifth more time.
    if (base.a < least_alpha) discard;
#endif
#ifdef FRONTS
    pixel = vec4(1.0);  // of any colour
    return;
#endif
    vec3 glow = emissive;
#ifdef GLOW_TEXTURE
    glow *= texture(glow_texture, frag_glow_uv).rgb;
#endif

#ifdef UNLIT
    float light = 1.0;
#else
    // Both sides of a face are lit as the visible side, whatever the winding.
    vec3 face_normal = normalize(cross(dFdx(frag_position), dFdy(frag_position)));
    face_normal = dot(face_normal, eye - frag_position) < 0.0 ? -face_normal : face_normal;
    vec3 n = face_normal;
#ifdef NORMALS
    if (dot(frag_normal, frag_normal) > 0.0) {
        n = normalize(frag_normal);
        n = dot(n, face_normal) < 0.0 ? -n : n;
    }
#endif
    float light = ambient;
    for (int i = 0; i < LIGHTS; i++)
        light += light_strengths[i] * max(dot(n, light_directions[i]), 0.0);
#endif
#ifdef BLENDS
    pixel = vec4(linear_to_srgb(max(base.rgb * light, glow)), base.a);
#else
    pixel = vec4(linear_to_srgb(max(base.rgb * light, glow)), 1.0);
#endif
}
